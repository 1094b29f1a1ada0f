"""What a call costs with a shared breaker, beside one that is not shared, and what one weighs."""

from __future__ import annotations

import gc
import tracemalloc

from benchmarks import measure
from benchmarks.figures import Figure, costs
from benchmarks.stacks import bare, ours
from lightrag_resilience import BreakerPolicy
from lightrag_resilience.testing.redis_server import RedisServer

__all__ = ["bytes_of_breakers", "call_costs"]


async def call_costs(rounds: int, calls: int) -> dict[str, dict[str, Figure]]:
    """Microseconds above the bare call: returning, refused by an open breaker, and failing."""
    with RedisServer() as server:
        registry = ours.make_registry(redis_url=server.url)
        shared = ours.stack(name="ours, shared", protect=ours.decorator(registry))
        stacks = [*bare.STACKS, ours.STACKS[0], shared]
        try:
            return {
                "happy": costs(await measure.happy(stacks, rounds, calls)),
                "refused": costs(await measure.refused(stacks, rounds, calls)),
                "failing": costs(await measure.failing(stacks, rounds, calls)),
            }
        finally:
            registry.close()


def bytes_of_breakers(number: int) -> float:
    """So many breakers that share through Redis, with what finds them by name."""
    with RedisServer() as server:
        registry = ours.make_registry(redis_url=server.url)
        registry.get("llm.first")  # what all of them share is there
        sync = registry._synchronizer()  # noqa: SLF001 - guards are weighed elsewhere
        assert sync is not None  # noqa: S101 - an address is given
        policy = BreakerPolicy()
        gc.collect()
        tracemalloc.start()
        try:
            for count in range(number):
                sync.breaker(f"llm.{count}", policy, registry.events)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            registry.close()
