"""Sources of streams, and what a guard made of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from lightrag_resilience import (
    ConcurrencyPolicy,
    Guard,
)
from lightrag_resilience.calls.call_context import inside_guarded_call

ONE_PERMIT = ConcurrencyPolicy(max_concurrent=1)


class Source:
    """A stream whose steps a test gives: a number waits, an exception is raised, else an item."""

    def __init__(self, *steps: Any) -> None:
        self.steps = steps
        self.begun = 0
        self.closed = 0
        self.owned: list[bool] = []

    async def words(self) -> AsyncIterator[str]:
        self.begun += 1
        try:
            for step in self.steps:
                self.owned.append(inside_guarded_call())
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.closed += 1


async def collected(stream: AsyncIterator[str]) -> list[str]:
    return [word async for word in stream]


def verdict(guard: Guard) -> tuple[int, int]:
    shown = guard.breaker.snapshot()
    return shown.calls, shown.failed


def free_permits(guard: Guard) -> int:
    occupancy = guard.occupancy
    assert occupancy.limit is not None
    return occupancy.limit - occupancy.in_use
