"""What operators changed, as a worker reads it from a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience import BreakerPolicy
from lightrag_resilience.events import Events
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import Override, StoredOverrides, WireError
from lightrag_resilience.shared_state.overrides import Overrides
from lightrag_resilience.shared_state.script_runner import ScriptRunner
from lightrag_resilience.shared_state.synchronizer import Synchronizer
from lightrag_resilience.testing.redis_server import RedisServer

pytestmark = pytest.mark.anyio
KEY = Override.key("t:")
RPM = "RESILIENCE_LLM__LIMIT__RPM"


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Any]:
    client = make_client(server.url)
    yield client
    await client.aclose()


async def test_each_change_is_told_once(client: Any) -> None:
    store, told = ScriptRunner(client, "worker"), list[Any]()
    overrides = Overrides("t:", told.append)
    await overrides.poll(store)
    assert told == []
    await store.override("t:", RPM, Override("60", "by Ada"))
    await overrides.poll(store)
    await overrides.poll(store)
    assert told == [{RPM: Override("60", "by Ada")}]
    await store.override("t:", RPM, None)
    await overrides.poll(store)
    assert told[1:] == [{}]


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda client: client.hset(KEY, RPM, "nonsense"),
        lambda client: client.hset(KEY, RPM, "[1, 2]"),
        lambda client: client.hset(KEY, RPM, '["60"]'),
        lambda client: client.hset(KEY, RPM, "[" * 5000),
        lambda client: client.hset(KEY, mapping={str(n): '["", ""]' for n in range(1001)}),
        lambda client: client.hset(KEY, "FOO__LIMIT__RPM", '["7", ""]'),
        lambda client: client.hset(KEY, RPM.lower(), '["7", ""]'),
        lambda client: client.hset(KEY, f"{RPM}\n", '["7", ""]'),
        lambda client: client.hset(KEY, "RESILIENCE_" + "X" * 4000, '["7", ""]'),
        lambda client: client.hset(KEY, RPM, '["7", "' + "x" * 20_000 + '"]'),
        lambda client: client.hset(KEY, b"\xff\x1b[31m", '["7", ""]'),
        lambda client: client.set(KEY, f"{RPM}=60"),
    ],
)
async def test_what_is_none_of_ours_is_told_once_and_ignored(
    client: Any, corrupt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store, told = ScriptRunner(client, "worker"), list[Any]()
    overrides = Overrides("t:", told.append)
    await corrupt(client)
    await overrides.poll(store)
    await overrides.poll(store)
    assert told == []
    assert len(caplog.records) == 1
    (complaint,) = caplog.messages
    assert complaint.startswith("What stands in Redis as overrides is ignored")
    assert complaint.isprintable()
    assert len(complaint) < 500
    await client.delete(KEY)
    await store.override("t:", RPM, Override("60", "by Ada"))
    await overrides.poll(store)
    assert told == [{RPM: Override("60", "by Ada")}]


async def test_an_odd_field_hides_no_other(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    store, told = ScriptRunner(client, "worker"), list[Any]()
    overrides = Overrides("t:", told.append)
    await store.override("t:", RPM, Override("60", "by Ada"))
    for number in range(9):
        await client.hset(KEY, f"ODD_{number}", "7")
        await overrides.poll(store)
    assert told == [{RPM: Override("60", "by Ada")}]
    assert "'ODD_4' and 4 more" in caplog.text
    found = await store.overrides("t:")
    assert found.odd == tuple(f"ODD_{number}" for number in range(9))


async def test_overrides_that_cannot_be_applied_are_told_once_and_end_no_look(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store, tried = ScriptRunner(client, "worker"), list[Any]()

    def fail(found: Any) -> None:
        tried.append(found)
        raise KeyError(RPM)

    overrides = Overrides("t:", fail)
    await store.override("t:", RPM, Override("60", "by Ada"))
    await overrides.poll(store)
    await overrides.poll(store)
    assert len(tried) == len(caplog.records) == 1
    assert "applying them fails with KeyError" in caplog.text


async def test_what_ended_while_no_thread_looked_ends_when_one_looks_again(
    client: Any, server: RedisServer
) -> None:
    store, told = ScriptRunner(client, "worker"), list[Any]()
    sync = Synchronizer(server.url, "t:", override=told.append)
    sync.breaker("llm", BreakerPolicy(), Events())
    try:
        for override in (Override("60", "by Ada"), None):
            await store.override("t:", RPM, override)
            sync.begin()
            deadline = time.monotonic() + 10
            while len(told) < 1 + (override is None):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await asyncio.to_thread(sync.close)
    finally:
        await asyncio.to_thread(sync.close)
    assert told == [{RPM: Override("60", "by Ada")}, {}]


@given(st.text(), st.text())
def test_what_is_kept_is_read_as_it_was_but_for_what_a_terminal_obeys(
    value: str, reason: str
) -> None:
    read = Override.parse(Override(value, reason).as_json().encode())
    assert read.value.isprintable()
    assert read.reason == "".join(filter(str.isprintable, reason))[:200]


@given(st.dictionaries(st.binary(), st.binary() | st.just(b'["60", ""]')))
def test_whatever_fields_there_are_only_variables_are_read(kept: dict[bytes, bytes]) -> None:
    found = StoredOverrides.parse(kept)
    assert found.valid == {}
    assert len(found.odd) == len(kept)
    assert all(name.isprintable() for name in found.odd)


@given(st.binary())
def test_nonsense_is_no_override(kept: bytes) -> None:
    with pytest.raises(WireError):
        Override.parse(kept)
