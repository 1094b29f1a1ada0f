"""Accepts calls until a drain begins, and knows which are in flight."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any, Self

from lightrag_resilience.errors import ShuttingDownError
from lightrag_resilience.events import AttemptRejected, Events

__all__ = ["DrainGate", "Interruptible", "allow_during_drain"]

is_allowed_during_drain: ContextVar[bool] = ContextVar(
    "lightrag_resilience_allowed_during_drain", default=False
)


@contextlib.contextmanager
def allow_during_drain() -> Iterator[None]:
    """Accept calls made in this block, and in tasks begun in it, during a drain too.

    For work that was accepted before the drain began, such as a request.
    """
    token = is_allowed_during_drain.set(True)
    try:
        yield
    finally:
        is_allowed_during_drain.reset(token)


class DrainGate:
    """The gate of a process's guards. Any thread may close it.

    Attributes:
        is_closed: Whether new calls are rejected.
        running: Calls in flight, in the order in which they began; of a traced block with its span.
        in_generators: Open blocks of async generators by the generator's frame, the innermost last.
        retry_after: Seconds after which a rejected caller may try again, or another process.
    """

    __slots__ = ("_pid", "_waits", "in_generators", "is_closed", "retry_after", "running")

    def __init__(self) -> None:
        self.is_closed = False
        self.retry_after = 1.0
        self.running: dict[Any, Any] = {}
        self.in_generators: dict[FrameType, list[Any]] = {}
        self._waits: dict[Interruptible, asyncio.AbstractEventLoop] = {}
        self._pid = os.getpid()

    def reset_if_forked(self) -> None:
        """In a forked child, open and forget all calls: they belong to the parent."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self.clear()

    def clear(self) -> None:
        """Open, and forget all calls and waits."""
        self.is_closed = False
        self.running.clear()
        self._waits.clear()

    def close(self) -> None:
        """Reject new calls, and interrupt all waits that can be given up without loss."""
        self.is_closed = True
        for wait, loop in list(self._waits.items()):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(wait.interrupt)

    def open(self) -> None:
        """Accept calls again."""
        self.is_closed = False

    def check(self, dependency: str, events: Events | None = None) -> None:
        """Reject a new call during a drain, and publish that.

        Raises:
            ShuttingDownError: The gate is closed, and no accepted work is around the call.
        """
        if self.is_closed and not is_allowed_during_drain.get():
            if events is not None:
                events.publish(AttemptRejected(dependency, ShuttingDownError.__name__))
            raise self.rejection(dependency)

    def rejection(self, dependency: str) -> ShuttingDownError:
        """The error of a rejected call."""
        return ShuttingDownError(dependency, self.retry_after)

    def interruptible(self, dependency: str) -> Interruptible:
        """A block that a drain interrupts: for a wait that can be given up without loss."""
        return Interruptible(self, dependency)

    def track(self, wait: Interruptible) -> None:
        """Add a wait that begins."""
        self._waits[wait] = asyncio.get_running_loop()

    def untrack(self, wait: Interruptible) -> None:
        """Remove a wait that has ended."""
        self._waits.pop(wait, None)


class Interruptible:
    """A block in one task that a drain cancels; the block then raises `ShuttingDownError`."""

    __slots__ = ("_cancelling", "_dependency", "_gate", "_is_interrupted", "_task")

    def __init__(self, gate: DrainGate, dependency: str) -> None:
        self._gate = gate
        self._dependency = dependency
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Cancel the wait unless it has ended; on its own event loop."""
        if self in self._gate._waits and not self._is_interrupted:  # noqa: SLF001 - its own gate
            self._is_interrupted = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        if self._gate.is_closed:
            raise self._gate.rejection(self._dependency)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        self._task = task
        self._cancelling = task.cancelling()
        self._gate.track(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._gate.untrack(self)
        if not self._is_interrupted:
            return
        # As in `asyncio.timeout`: if the caller was cancelled too, its cancellation goes on.
        is_only_ours = self._task.uncancel() <= self._cancelling
        if isinstance(error, asyncio.CancelledError) and is_only_ours:
            raise self._gate.rejection(self._dependency) from None
