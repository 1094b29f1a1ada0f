"""The order in which calls are admitted that have to wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from enum import IntEnum

from lightrag_resilience.config.validation import shown
from lightrag_resilience.errors import PolicyError

__all__ = ["Priority", "current_priority", "priority"]


class Priority(IntEnum):
    """Whether a user waits for the answer. The lower number goes first."""

    INTERACTIVE = 0
    """A user waits for it, such as for a query. The default."""
    BACKGROUND = 1
    """No user waits for it, such as for ingest."""


current_priority: ContextVar[Priority] = ContextVar(
    "lightrag_resilience_priority", default=Priority.INTERACTIVE
)


def priority(level: Priority) -> AbstractContextManager[None]:
    """Give the guarded calls of a block this priority; by default they are interactive.

    Of calls that wait for a permit or a rate limit, interactive ones go before background ones. In
    a full queue an interactive call evicts the newest background one.

    Raises:
        PolicyError: It is no `Priority`.
    """
    if not isinstance(level, Priority):
        raise PolicyError(
            f"priority() takes Priority.INTERACTIVE or Priority.BACKGROUND, not {shown(level)}"
        )
    return _with_priority(level)


@contextlib.contextmanager
def _with_priority(level: Priority) -> Iterator[None]:
    token = current_priority.set(level)
    try:
        yield
    finally:
        current_priority.reset(token)
