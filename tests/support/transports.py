"""Parts of tests of the httpx transports."""

from __future__ import annotations

import asyncio
from typing import Any

from lightrag_resilience import (
    Guard,
    Guards,
    Policy,
    RetryPolicy,
)
from lightrag_resilience.events import AttemptFailed, Event

THREE = RetryPolicy(attempts=3, initial_backoff=1.0, jitter="none")


def policy(**changes: Any) -> Policy:
    return Policy(retry=THREE).with_changes(**({"failure_rate": 0.5} | changes))


def now() -> float:
    return asyncio.get_running_loop().time()


def verdict(guard: Guard) -> tuple[int, int]:
    shown = guard.breaker.snapshot()
    return shown.calls, shown.failed


def free_permits(guard: Guard) -> int:
    occupancy = guard.occupancy
    assert occupancy.limit is not None
    return occupancy.limit - occupancy.in_use


def the_guard(registry: Guards) -> Guard:
    (guard,) = registry
    return guard


def kinds_published(registry: Guards) -> list[str]:
    kinds: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, AttemptFailed):
            kinds.append(event.kind)

    registry.events.subscribe(listen)
    return kinds
