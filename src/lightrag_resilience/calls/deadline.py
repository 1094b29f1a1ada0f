"""One deadline for all guarded calls of a block, whatever tasks they are made in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from lightrag_resilience.config.policies import Seconds
from lightrag_resilience.config.validation import problem_with
from lightrag_resilience.errors import PolicyError

from .call_context import Deadline, current_call, current_deadline

__all__ = ["deadline", "under_deadline"]


def deadline(
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    reason: str = "",
) -> AbstractContextManager[None]:
    """Give all guarded calls of a block, and of tasks begun in it, one deadline together.

    It holds for their attempts, retries, backoffs and all their waits; for a stream, up to its
    first item. A call that has not ended by then raises `DeadlineExceededError`, and is no failure
    of the dependency where its policy allows it more time. Of deadlines around each other, the
    first to pass decides. Code that no guard is around is not interrupted.

    Args:
        seconds: How long the block may take.
        clock: Monotonic seconds.
        reason: How errors name the limit; by default its seconds.

    Raises:
        PolicyError: `seconds` is not above 0 and at most 86400.
    """
    if problem := problem_with(seconds, Seconds):
        raise PolicyError(f"deadline: seconds {problem}")
    return _deadline(seconds, clock, reason or f"after the {seconds:g} s of deadline()")


@contextlib.contextmanager
def _deadline(seconds: float, clock: Callable[[], float], reason: str) -> Iterator[None]:
    around = current_deadline()
    if around is not None and around.left <= seconds:
        yield
        return
    with _current(Deadline(seconds, clock, reason, current_call.get())):
        yield


@contextlib.contextmanager
def under_deadline(carried: Deadline | None) -> Iterator[None]:
    """In another context, a block with the deadline that another task's code has, or with none."""
    if current_deadline() is carried:
        yield
        return
    with _current(carried and carried.copy()):
        yield


@contextlib.contextmanager
def _current(call: Deadline | None) -> Iterator[None]:
    token = current_call.set(call)
    try:
        yield
    finally:
        if call is not None:
            call.is_over = True
        with contextlib.suppress(ValueError):  # a generator with the block, closed in another task
            current_call.reset(token)
