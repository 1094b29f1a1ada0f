"""Guards on virtual time, and functions that do what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from lightrag_resilience import Guard, Policy
from lightrag_resilience.events import Event

__all__ = ["Scripted", "down", "guard_on_loop", "now", "patient", "published_by"]


def now() -> float:
    """Seconds on the running loop."""
    return asyncio.get_running_loop().time()


def patient(**changes: Any) -> Policy:
    """A policy without timeouts, retries or failures in a row: a test adds what it is about."""
    plain = Policy().with_changes(
        failure_rate=0.5, attempt_timeout=None, total_timeout=None, attempts=1
    )
    return plain.with_changes(**changes)


def guard_on_loop(policy: Policy | None = None, **changes: Any) -> Guard:
    """A guard by the running loop's clock."""
    return Guard("llm", policy or patient(**changes), clock=asyncio.get_running_loop().time)


def published_by(guard: Guard) -> list[Event]:
    """The events of a guard from now on."""
    events: list[Event] = []
    guard.events.subscribe(events.append)
    return events


def down() -> Exception:
    """A failure that is worth a retry."""
    return ConnectionRefusedError("down")


class Scripted:
    """A coroutine function that takes its steps one a call: raises, waits, or returns.

    A number waits so many seconds; an exception is raised; a callable is awaited; anything else is
    the result. The last step is repeated for ever.
    """

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.at: list[float] = []

    @property
    def calls(self) -> int:
        return len(self.at)

    async def __call__(self, *_: Any, **__: Any) -> Any:
        step = self.steps[min(len(self.at), len(self.steps) - 1)]
        self.at.append(now())
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
        if isinstance(step, Callable):  # type: ignore[arg-type]
            return await step()
        return step

    def gaps(self) -> list[float]:
        """Seconds from each call to the next."""
        return [later - sooner for sooner, later in zip(self.at, self.at[1:], strict=False)]


async def outcomes(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Results and errors of calls made at once."""
    return await asyncio.gather(*calls, return_exceptions=True)
