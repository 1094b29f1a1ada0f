"""Who goes first where a dependency has no room for all."""

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
    """Whether somebody waits for the answer. The lower number goes first."""

    INTERACTIVE = 0
    BACKGROUND = 1


current_priority: ContextVar[Priority] = ContextVar(
    "lightrag_resilience_priority", default=Priority.INTERACTIVE
)


def priority(level: Priority) -> AbstractContextManager[None]:
    """Make the guarded calls of a block as important as this; without it they are interactive.

    Where calls wait for a place or for a turn, interactive ones go before background ones, and a
    full queue sheds the youngest background one for an interactive one.

    Raises:
        PolicyError: It is no `Priority`.
    """
    if not isinstance(level, Priority):
        raise PolicyError(
            f"priority() takes Priority.INTERACTIVE or Priority.BACKGROUND, not {shown(level)}"
        )
    return _as_important_as(level)


@contextlib.contextmanager
def _as_important_as(level: Priority) -> Iterator[None]:
    token = current_priority.set(level)
    try:
        yield
    finally:
        current_priority.reset(token)
