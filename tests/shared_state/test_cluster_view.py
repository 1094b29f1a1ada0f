"""What an operator sees on a real server where some of it is not ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.cluster_view import ClusterView
from lightrag_resilience.shared_state.messages import (
    Description,
    Keys,
    Override,
    Presence,
    Report,
    policy_as_json,
)
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.testing.redis_server import RedisServer

pytestmark = pytest.mark.anyio
HERE = Presence("here", 1)
POLICY = policy_as_json(BreakerPolicy())
WINDOW = Keys("t:", "llm").window


async def sum_up(client: Any) -> None:
    now = (await client.time())[0] * 1000 // 6000
    most = 2**53 - 1
    for index in range(9):
        await client.hset(WINDOW, mapping={f"n{index}": now - index, f"c{index}": most})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client: client.hset(Presence.key("t:", "odd"), "a", "1"),
        lambda client: client.set(Presence.key("t:", "odd"), "[" * 200_000),
        lambda client: client.set(Override.key("t:"), "text"),
        sum_up,
    ],
)
async def test_a_malformed_entry_does_not_hide_the_others(server: RedisServer, spoil: Any) -> None:
    async with make_client(server.url) as client:
        runner = ScriptRunner(client, "worker")
        await runner.heartbeat("t:", HERE, 10.0)
        ref = BreakerRef("t:", "llm", policy_as_json(BreakerPolicy()))
        await runner.force_state(ref, State.OPEN, "by hand", open_for=60.0)
        await spoil(client)
        seen = await ClusterView(client, "t:", lambda _: BreakerPolicy()).fetch()
    assert (seen.troubled, seen.workers, seen.overrides) == (["llm"], [HERE], {})


# ---------------------------------------------------------------------- very much of it


class Asked(ScriptRunner):
    """Notes what is asked for in one go."""

    def __init__(self, client: Any) -> None:
        super().__init__(client, "operator")
        self.names: list[list[str]] = []
        self.keys: list[int] = []

    async def descriptions(self, refs: Sequence[BreakerRef]) -> list[Description | None]:
        self.names.append([ref.name for ref in refs])
        return await super().descriptions(refs)

    async def presences(self, keys: Sequence[bytes]) -> list[Presence]:
        self.keys.append(len(keys))
        return await super().presences(keys)


async def filled(client: Any, breakers: int, workers: int = 0) -> tuple[ClusterView, Asked]:
    cluster = ClusterView(client, "t:", lambda _: BreakerPolicy())
    runner = cluster._runner = Asked(client)
    for number in range(breakers):
        await runner.report(BreakerRef("t:", f"llm.{number:03}", POLICY), Report(0, calls=1))
    for number in range(workers):
        shown = ScriptRunner(client, f"worker {number}")
        await shown.heartbeat("t:", Presence("here", number), 60.0)
    return cluster, runner


async def test_a_large_cluster_is_fetched_in_slices(server: RedisServer) -> None:
    async with make_client(server.url) as client:
        cluster, runner = await filled(client, 60, 30)
        seen = await cluster.fetch()
    assert list(seen.breakers) == [f"llm.{number:03}" for number in range(60)]
    assert [worker.pid for worker in seen.workers] == list(range(30))
    assert max(map(len, runner.names)) <= 8
    assert max(runner.keys) <= 8


async def test_a_fetch_out_of_time_is_continued_by_the_next(server: RedisServer) -> None:
    async with make_client(server.url) as client:
        cluster, runner = await filled(client, 20)
        await runner.force_state(
            BreakerRef("t:", "llm.003", POLICY), State.OPEN, "by hand", open_for=60.0
        )
        found = await cluster.discover()
        earlier: dict[str, Description] = {}
        for known in (8, 16, 20, 20):
            seen = await cluster.fetch(found, earlier=earlier, seconds=0.0)
            assert len(seen.breakers) == known
            earlier = seen.breakers
        await client.delete(Keys("t:", "llm.003").state)
        await cluster.fetch(found, earlier=earlier, seconds=0.0)
    firsts = [names[0] for names in runner.names]
    # What was never asked for comes first, then what is in trouble, then the longest not asked for.
    assert firsts == ["llm.000", "llm.008", "llm.016", "llm.003", "llm.003"]
    assert runner.names[2] == ["llm.016", "llm.017", "llm.018", "llm.019", "llm.003", *FIRST[:3]]
    assert runner.names[3] == ["llm.003", *FIRST[3:], *(f"llm.{n:03}" for n in range(8, 11))]


FIRST = [f"llm.{number:03}" for number in range(8) if number != 3]


async def test_discovery_is_bounded(server: RedisServer) -> None:
    async with make_client(server.url) as client:
        cluster, _ = await filled(client, 20, 20)
        for name in ("x" * 201, "\x1b[31m", "x" * 5000):
            await client.hset(Keys("t:", name).state, "st", "C")
        everything, some = await cluster.discover(), await cluster.discover(7)
    assert (len(everything.breakers), len(everything.workers)) == (20, 20)
    assert (len(some.breakers), len(some.workers)) == (7, 7)


async def test_a_fetch_loads_scripts_that_redis_has_lost(server: RedisServer) -> None:
    async with make_client(server.url) as client:
        cluster, _ = await filled(client, 20)
        await client.script_flush()
        assert len((await cluster.fetch()).breakers) == 20
