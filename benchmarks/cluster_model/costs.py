"""What the server's one thread takes for each request of workers, while it is busy.

A server that is nearly idle spends more on waking up than on its commands; what counts for a large
cluster is one that never sleeps. The workers' own code sends the requests, over many connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import redis

from lightrag_resilience import BreakerPolicy
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import Presence, Report, policy_as_json
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.testing.redis_server import RedisServer

__all__ = ["Costs", "measure_costs"]

_CONNECTIONS = 40
_PREFIX = "lr:"
_TTL = 10.0  # seconds

_Request = Callable[[ScriptRunner, BreakerRef, int], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of the server's processor.

    Attributes:
        poll: A read of one breaker's state.
        heartbeat: A worker's heartbeat, with the count of workers and the overrides.
        report: A report of calls that succeeded.
        delivery: One message to one subscriber.
    """

    poll: float
    heartbeat: float
    report: float
    delivery: float


def measure_costs(each: int) -> Costs:
    """Every cost, by so many commands of each connection."""
    with RedisServer() as server:
        return asyncio.run(_measure(server.url, each))


async def _measure(url: str, each: int) -> Costs:
    stores = [ScriptRunner(make_client(url), f"worker-{count}") for count in range(_CONNECTIONS)]
    subject = BreakerRef(_PREFIX, "llm.model", policy_as_json(BreakerPolicy()))
    with redis.Redis.from_url(url) as client:

        async def cost(request: _Request) -> float:
            async def repeat(store: ScriptRunner, number: int) -> None:
                for batch in range(number):
                    await request(store, subject, batch)

            await asyncio.gather(*(repeat(store, 1) for store in stores))  # scripts are loaded
            before = _cpu(client)
            await asyncio.gather(*(repeat(store, each) for store in stores))
            return (_cpu(client) - before) / each / len(stores)

        costs = Costs(
            poll=await cost(_poll),
            heartbeat=await cost(_heartbeat),
            report=await cost(_report),
            delivery=await _delivery(client, stores, each),
        )
    for store in stores:
        await store.client.aclose()
    return costs


async def _poll(store: ScriptRunner, subject: BreakerRef, _: int) -> None:
    await store.read_state(subject)


async def _heartbeat(store: ScriptRunner, _: BreakerRef, __: int) -> None:
    await store.heartbeat(_PREFIX, Presence("host", 1), _TTL)
    await store.count_workers(_PREFIX, _TTL)
    await store.overrides(_PREFIX)


async def _report(store: ScriptRunner, subject: BreakerRef, batch: int) -> None:
    await store.report(subject, Report(batch + 1, calls=5))


async def _delivery(client: Any, stores: list[ScriptRunner], messages: int) -> float:
    """The cost of a message to all, above that of a message without subscribers."""
    listeners = [store.client.pubsub() for store in stores]
    for listener in listeners:
        await listener.subscribe("news")

    async def cost(channel: str) -> float:
        before = _cpu(client)
        for _ in range(messages):
            client.publish(channel, "{}")
        return _cpu(client) - before

    without = await cost("unused")
    to_all = await cost("news")
    for listener in listeners:
        await listener.aclose()
    return max(to_all - without, 0.0) / messages / len(listeners)


def _cpu(client: Any) -> float:
    usage = client.info("cpu")
    return float(usage["used_cpu_sys"] + usage["used_cpu_user"])
