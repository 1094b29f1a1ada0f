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


async def test_each_change_of_overrides_is_applied_once(client: Any) -> None:
    runner, applied = ScriptRunner(client, "worker"), list[Any]()
    overrides = Overrides("t:", applied.append)
    await overrides.poll(runner)
    assert applied == []
    await runner.override("t:", RPM, Override("60", "by Ada"))
    await overrides.poll(runner)
    await overrides.poll(runner)
    assert applied == [{RPM: Override("60", "by Ada")}]
    await runner.override("t:", RPM, None)
    await overrides.poll(runner)
    assert applied[1:] == [{}]


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
async def test_malformed_overrides_are_logged_once_and_ignored(
    client: Any, corrupt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runner, applied = ScriptRunner(client, "worker"), list[Any]()
    overrides = Overrides("t:", applied.append)
    await corrupt(client)
    await overrides.poll(runner)
    await overrides.poll(runner)
    assert applied == []
    assert len(caplog.records) == 1
    (complaint,) = caplog.messages
    assert complaint.startswith("Overrides in Redis are ignored")
    assert complaint.isprintable()
    assert len(complaint) < 500
    await client.delete(KEY)
    await runner.override("t:", RPM, Override("60", "by Ada"))
    await overrides.poll(runner)
    assert applied == [{RPM: Override("60", "by Ada")}]


async def test_a_malformed_override_does_not_hide_the_others(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runner, applied = ScriptRunner(client, "worker"), list[Any]()
    overrides = Overrides("t:", applied.append)
    await runner.override("t:", RPM, Override("60", "by Ada"))
    for number in range(9):
        await client.hset(KEY, f"ODD_{number}", "7")
        await overrides.poll(runner)
    assert applied == [{RPM: Override("60", "by Ada")}]
    assert "'ODD_4' and 4 more" in caplog.text
    found = await runner.overrides("t:")
    assert found.odd == tuple(f"ODD_{number}" for number in range(9))


async def test_overrides_that_cannot_be_applied_are_logged_once(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runner, tried = ScriptRunner(client, "worker"), list[Any]()

    def fail(found: Any) -> None:
        tried.append(found)
        raise KeyError(RPM)

    overrides = Overrides("t:", fail)
    await runner.override("t:", RPM, Override("60", "by Ada"))
    await overrides.poll(runner)
    await overrides.poll(runner)
    assert len(tried) == len(caplog.records) == 1
    assert "applying them fails with KeyError" in caplog.text


async def test_an_override_removed_between_two_threads_ends_with_the_next_poll(
    client: Any, server: RedisServer
) -> None:
    runner, applied = ScriptRunner(client, "worker"), list[Any]()
    sync = Synchronizer(server.url, "t:", override=applied.append)
    sync.breaker("llm", BreakerPolicy(), Events())
    try:
        for override in (Override("60", "by Ada"), None):
            await runner.override("t:", RPM, override)
            sync.begin()
            deadline = time.monotonic() + 10
            while len(applied) < 1 + (override is None):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await asyncio.to_thread(sync.close)
    finally:
        await asyncio.to_thread(sync.close)
    assert applied == [{RPM: Override("60", "by Ada")}, {}]


@given(st.text(), st.text())
def test_an_override_is_parsed_as_stored_without_control_characters(
    value: str, reason: str
) -> None:
    read = Override.parse(Override(value, reason).as_json().encode())
    assert read.value.isprintable()
    assert read.reason == "".join(filter(str.isprintable, reason))[:200]


@given(st.dictionaries(st.binary(), st.binary() | st.just(b'["60", ""]')))
def test_only_fields_named_like_variables_are_overrides(kept: dict[bytes, bytes]) -> None:
    found = StoredOverrides.parse(kept)
    assert found.valid == {}
    assert len(found.odd) == len(kept)
    assert all(name.isprintable() for name in found.odd)


@given(st.binary())
def test_a_malformed_value_is_no_override(kept: bytes) -> None:
    with pytest.raises(WireError):
        Override.parse(kept)
