"""What an operator sees on a real server where some of it is none of ours."""

from __future__ import annotations

from typing import Any

import pytest

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.shared.client import make_client
from lightrag_resilience.shared.overview import Cluster
from lightrag_resilience.shared.store import Store, Subject
from lightrag_resilience.shared.wire import Keys, Override, Presence, policy_as_json
from lightrag_resilience.testing.redis_server import RedisServer

pytestmark = pytest.mark.anyio
HERE = Presence("here", 1)
WINDOW = Keys("t:", "llm").window


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
async def test_one_entry_that_is_none_of_ours_hides_no_other(
    server: RedisServer, spoil: Any
) -> None:
    async with make_client(server.url) as client:
        store = Store(client, "worker")
        await store.show("t:", HERE, 10.0)
        subject = Subject("t:", "llm", policy_as_json(BreakerPolicy()))
        await store.steer(subject, State.OPEN, "by hand", open_for=60.0)
        await spoil(client)
        seen = await Cluster(client, "t:", lambda _: BreakerPolicy()).look()
    assert (seen.troubled, seen.workers, seen.overrides) == (["llm"], [HERE], {})
