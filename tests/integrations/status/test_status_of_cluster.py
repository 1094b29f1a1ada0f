"""The status page with a real Redis: breakers of other processes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.integrations.status import observer as _status_observer
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import Keys, policy_as_json
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.testing.redis_server import RedisServer
from support.status_requests import (
    PATIENCE,
    act,
    ask,
    made,
    of,
    page,
    trip,
    watching,
)
from support.workers import workers

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- with Redis


async def test_breakers_of_other_processes_are_shown_and_changed(redis: RedisServer) -> None:
    guards = made(REDIS_URL=redis.url)
    app = page(guards)
    made_up = "llm.made-up"
    with workers(redis.url, number=2) as two:
        two[0].request("call", times=3)
        async with watching(app) as (watcher, _):
            await watcher.until(lambda data: of(data, made_up)["state"] == "closed")
            two[0].request("behave", fails=5)
            two[0].request("call", times=5)
            data = await watcher.until(lambda data: of(data, made_up)["state"] == "open")
            row = of(data, made_up)
            assert (row["condition"], row["first_reason"]) == (
                "down",
                "after 5 failures in a row, the last ConnectionRefusedError",
            )
            assert abs(row["since"] - time.time()) < PATIENCE
            assert not row["local"]
            assert {worker["pid"] for worker in data["workers"]} >= {w.process.pid for w in two}
            assert not data["redis"]["error"]

            # A process that has not begun to share yet shows what the others have decided.
            idle = made(REDIS_URL=redis.url)
            await asyncio.to_thread(idle.get, made_up)
            row = of((await ask(page(idle), "/resilience/data")).json, made_up)
            assert (row["local"], row["state"]) == (True, "open")
            assert idle.get(made_up).breaker.state.value == "closed"

            content = {"action": "isolate", "name": made_up, "minutes": 10, "reason": "they move"}
            done = (await act(app, content)).json["done"]
            assert done.startswith("llm.made-up is open in all workers for 10 m: by the status")
            for answer in two.each("until", state="open"):
                assert answer["at"]
            isolated = await watcher.until(lambda data: of(data, made_up).get("by_hand"))
            assert isolated["headline"]["condition"] == "isolated"
            assert (await act(app, {"action": "close", "name": made_up})).status == 200
            assert all(answer["at"] for answer in two.each("until", state="closed"))
            over = await watcher.until(
                lambda data: [each["new"] for each in data["changes"][:1]] == ["closed"]
            )
            assert over["changes"][0]["lasted"] >= 0
            unknown = await act(app, {"action": "close", "name": "llm.made-upp"})
            assert (unknown.status, "llm.made-upp" in unknown.json["detail"]) == (404, True)
    guards.close()


async def test_calls_of_a_local_breaker_are_counted_over_all_workers(redis: RedisServer) -> None:
    guards = made(REDIS_URL=redis.url, REDIS_PREFIX="counted:")
    app = page(guards)
    async with watching(app) as (watcher, _):
        async with asyncio.timeout(PATIENCE):
            while not (guards.link and guards.link.is_up):
                await guards.get("llm").call(asyncio.sleep, 0)
                await asyncio.sleep(0.01)
        data = await watcher.until(lambda data: of(data, "llm").get("workers") == 1)
        assert data["redis"]["round_trip"] is not None
        await trip(guards, "llm")
        data = await watcher.until(lambda data: of(data, "llm")["state"] == "open")
        assert of(data, "llm")["local"]
        guards.get("llm").breaker.set_mode("forced-open", "until tomorrow")
        data = await watcher.until(lambda data: of(data, "llm")["mode"] == "forced-open")
        assert of(data, "llm")["first_reason"] == "until tomorrow"
    guards.close()


async def test_a_slow_search_leaves_the_breakers_of_this_process(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_status_observer, "_SEARCH_TIMEOUT", -1.0)
    guards = made(REDIS_URL=redis.url, REDIS_PREFIX="vast:")
    guards.get("llm")
    data = (await ask(page(guards), "/resilience/data")).json
    assert [row["name"] for row in data["dependencies"]] == ["llm"]
    assert not data["redis"]["error"]
    guards.close()


async def test_an_unreachable_redis_is_reported_and_local_breakers_shown() -> None:
    guards = made(REDIS_URL="redis://127.0.0.1:1/0")
    guards.get("llm")
    app = page(guards)
    data = (await ask(app, "/resilience/data")).json
    assert data["redis"]["error"] == "nothing answers at 127.0.0.1:1"
    assert [row["name"] for row in data["dependencies"]] == ["llm"]
    answer = await act(app, {"action": "open", "name": "llm"})
    assert answer.status == 503
    assert "Nothing was changed: Redis cannot be used" in answer.json["detail"]
    assert guards.get("llm").breaker.state.value == "closed"
    guards.close()


async def test_troubled_ones_of_very_many_breakers_in_redis_are_shown(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_status_observer, "_FRESH", 0.0)
    monkeypatch.setattr(_status_observer, "_LONGEST_REST", 0.0)
    made_for: list[str] = []
    policy_for = Settings.policy_for

    def noted(settings: Settings, name: str, base: Any = None) -> Any:
        made_for.append(name)
        return policy_for(settings, name, base)

    monkeypatch.setattr(Settings, "policy_for", noted)
    guards = made(REDIS_URL=redis.url, REDIS_PREFIX="many:")
    async with make_client(redis.url) as client:
        filled = client.pipeline(transaction=False)
        for number in range(1200):
            state: Any = {"st": "C", "ver": number + 1, "till": 0, "opens": 0, "proven": 0}
            filled.hset(Keys("many:", f"host.{number:04}").state, mapping=state)
        await filled.execute()
        policy = policy_as_json(BreakerPolicy())
        subject = BreakerRef("many:", "host.1199", policy)
        await ScriptRunner(client, "one").force_state(
            subject, State.OPEN, "they move", open_for=600.0
        )
    app = page(guards)
    data: Any = {}
    async with app._observer.viewing():
        for _ in range(100):
            data = (await ask(app, "/resilience/data")).json
            if data["dependencies"][0]["name"] == "host.1199":
                break
        again = (await ask(app, "/resilience/data")).json
    for seen in (data, again):
        assert seen["redis"]["error"] == ""
        assert (seen["dependencies"][0]["name"], seen["omitted"]) == ("host.1199", 1000)
    assert len(made_for) == len(set(made_for)) == 1200
    guards.close()


async def test_changed_settings_replace_the_cached_policies_of_other_breakers(
    redis: RedisServer,
) -> None:
    guards = made(REDIS_URL=redis.url, REDIS_PREFIX="policies:")
    observer = page(guards)._observer
    before = observer._policy_of("llm.other")
    assert observer._policy_of("llm.other") is before
    guards.override({"RESILIENCE_LLM__BREAKER__WINDOW_SECONDS": "7"})
    assert observer._policy_of("llm.other").window_seconds == 7.0
    assert observer._policy_of("llm") is not guards.get("storage").policy.effective_breaker
    assert observer._policy_of("storage") is guards.get("storage").policy.effective_breaker
    guards.close()
