"""Two registries in one process share as two processes do."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pybreaker
import pytest
import redis

from lightrag_resilience import CallRejected, State
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.shared_state import sync_thread as worker
from lightrag_resilience.shared_state.connection_status import ConnectionStatus
from lightrag_resilience.shared_state.messages import Keys
from lightrag_resilience.testing.redis_server import RedisServer
from support.waiting import until

NAME = "llm.made-up"
PATIENCE = 10.0  # seconds


async def connected(*registries: Guards) -> None:
    breakers: list[Any] = [guards.get(NAME).breaker for guards in registries]
    await until(lambda: all(breaker._sync.connected for breaker in breakers))


async def fine() -> int:
    return 1


async def fail() -> None:
    raise ConnectionRefusedError("made up")


async def calls(guards: Guards, function: Callable[[], Awaitable[object]], times: int) -> int:
    """Make calls, and say how many were refused."""
    refused = 0
    for _ in range(times):
        try:
            await guards.get(NAME).call(function)
        except CallRejected:
            refused += 1
        except ConnectionRefusedError:
            pass
    return refused


def state_of(guards: Guards) -> State:
    return guards.get(NAME).breaker.state


@pytest.mark.redis
def test_a_trip_reaches_the_other_worker_and_its_pybreaker_listeners(make: Any) -> None:
    async def run() -> None:
        one, two = make(), make()
        await connected(one, two)
        changes = []

        class Listener(pybreaker.CircuitBreakerListener):
            def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
                changes.append((cb.name, old_state.name, new_state.name))

        two.get(NAME).breaker.pybreaker.add_listener(Listener())
        storage = two.get(NAME).breaker.storage
        await calls(one, fail, 5)
        await until(lambda: state_of(two) is State.OPEN)
        assert await calls(two, fine, 3) == 3
        assert storage.state == "open"
        assert storage.opened_at is not None
        await until(lambda: changes)
        assert changes == [(NAME, "closed", "open")]

    asyncio.run(run())


def test_a_foreign_pybreaker_forces_all_workers_through_the_storage(make: Any) -> None:
    async def run() -> None:
        one, two = make(), make()
        await connected(one, two)
        theirs = pybreaker.CircuitBreaker(state_storage=one.get(NAME).breaker.storage)
        theirs.open()
        await until(lambda: state_of(two) is State.OPEN)
        theirs.half_open()
        await until(lambda: state_of(two) is State.HALF_OPEN)
        theirs.close()
        await until(lambda: state_of(two) is State.CLOSED)

    asyncio.run(run())


def test_a_break_a_probe_and_a_recovery(make: Any) -> None:
    async def run() -> None:
        one, two = make(BREAKER__OPEN_FOR=0.2), make(BREAKER__OPEN_FOR=0.2)
        await connected(one, two)
        await calls(one, fail, 5)
        await until(lambda: state_of(two) is State.OPEN)
        deadline = time.monotonic() + PATIENCE
        while await calls(two, fine, 1):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await until(lambda: state_of(one) is state_of(two) is State.CLOSED)

    asyncio.run(run())


@pytest.mark.redis
def test_a_cancelled_probe_releases_its_permit(make: Any) -> None:
    async def run() -> None:
        one, two = make(), make()
        await connected(one, two)
        one.get(NAME).breaker.half_open()
        await until(lambda: state_of(two) is State.HALF_OPEN)
        entered = asyncio.Event()

        async def lasting() -> None:
            entered.set()
            await asyncio.sleep(60)

        async def probing() -> None:
            while True:
                await calls(one, lasting, 1)
                await asyncio.sleep(0.01)

        probe = asyncio.create_task(probing())
        await entered.wait()
        assert await calls(two, fine, 1) == 1
        probe.cancel()
        deadline = time.monotonic() + PATIENCE
        while await calls(two, fine, 1):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_guard_made_later_is_shared(make: Any) -> None:
    async def run() -> None:
        one, two = make(), make()
        await connected(one, two)
        one.get("storage.late").breaker.open()
        late = two.get("storage.late").breaker
        await until(lambda: late.state is State.OPEN)
        late.close()
        await until(lambda: one.get("storage.late").breaker.state is State.CLOSED)

    asyncio.run(run())


def test_a_forced_state_on_its_way_is_not_restored_as_well(make: Any) -> None:
    """It would arrive again after what another worker made of it."""

    async def run() -> None:
        one = make()
        await connected(one)
        runner = one._sync._worker._runner
        force_state, read_states = runner.force_state, runner.read_states
        plant, may_go = runner.restore, threading.Event()
        polls: list[int] = []
        planted: list[Any] = []

        async def late(*args: Any, **options: Any) -> Any:
            while not may_go.is_set():  # noqa: ASYNC110 - another thread's event
                await asyncio.sleep(0.001)
            return await force_state(*args, **options)

        async def seen(refs: Any) -> Any:
            replies = await read_states(refs)
            polls.append(len(refs))
            return replies

        async def planting(*args: Any) -> Any:
            planted.append(args)
            return await plant(*args)

        runner.force_state, runner.read_states, runner.restore = late, seen, planting
        one.get("storage.late").breaker.open()
        await until(lambda: len(polls) > 1)
        may_go.set()
        await until(lambda: one.get("storage.late").breaker.ref.version)
        assert planted == []

    asyncio.run(run())


def test_more_breakers_than_one_poll_holds_are_all_polled(make: Any) -> None:
    """Polls in slices make up for lost messages."""

    async def run() -> None:
        one, two = make(), make()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "_BREAKERS_A_POLL", 3)
            patch.setattr(worker, "_POLL_EVERY", 0.02)
            names = [f"storage.{number}" for number in range(10)]
            others = [two.get(name).breaker for name in names]
            await connected(one, two)
            sync: Any = others[0]
            await until(lambda: sync._sync._worker._pubsub)
            thread = sync._sync._worker
            leaving = asyncio.run_coroutine_threadsafe(thread._pubsub.unsubscribe(), thread.loop)
            await asyncio.wrap_future(leaving)
            for name in names:
                one.get(name).breaker.open()
            await until(lambda: all(other.state is State.OPEN for other in others))

    asyncio.run(run())


@pytest.mark.redis
def test_a_break_survives_a_server_that_restarts_empty(make: Any, server: RedisServer) -> None:
    async def run() -> None:
        one, two = make(), make()
        await connected(one, two)
        await calls(one, fail, 5)
        await until(lambda: state_of(two) is State.OPEN)
        server.kill()
        assert await calls(one, fine, 3) == await calls(two, fine, 3) == 3
        sync: Any = one._sync
        await until(lambda: not sync.connected)
        server.start()
        await connected(one, two)
        assert await calls(one, fine, 3) == await calls(two, fine, 3) == 3
        with redis.Redis.from_url(server.url) as client:
            await until(lambda: client.hget(f"lr:cb:{{{NAME}}}:s", "st") == b"O")

    asyncio.run(run())


def test_a_bug_in_the_thread_is_logged_and_sharing_goes_on(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        one = make()
        await connected(one)
        breaker: Any = one.get(NAME).breaker
        inner = breaker._sync._worker
        original = inner._runner.read_states

        async def mistaken(_: Any) -> Any:
            raise AssertionError("a mistake")

        inner._runner.read_states = mistaken
        inner.loop.call_soon_threadsafe(inner._poll_now.set)
        await until(lambda: not inner._link.is_up)
        inner._runner.read_states = original
        await connected(one)

    asyncio.run(run())
    logged = [record for record in caplog.records if record.exc_info]
    assert logged
    assert logged[0].getMessage() == "Sharing through Redis failed; it starts again"


def test_tasks_that_fail_in_turn_are_logged_once_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    link = ConnectionStatus(lambda: now)
    caplog.set_level(logging.INFO, logger="lightrag_resilience")
    failures = [TypeError("odd"), IndexError("odd"), OSError("odd")]
    assert [link.mark_down(error) for error in failures * 50] == [True] * 3 + [False] * 147
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO"]
    for kind in range(100):  # whatever a hostile server makes of it
        link.mark_down(type(f"Odd{kind}", (Exception,), {})())
    assert len(caplog.records) == 20
    link.mark_up()
    now = 1.0
    link.tick()
    assert link.mark_down(failures[0])
    logged = [record.levelname for record in caplog.records[20:]]
    assert logged == ["WARNING", "WARNING"]  # its return, and the next outage


def test_a_repeated_bug_is_logged_once_an_outage(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_RETRY_EVERY", 0.001)

    async def run() -> None:
        one = make()
        await connected(one)
        inner = one._sync._worker
        polls = 0

        async def mistaken(_: Any) -> Any:
            nonlocal polls
            polls += 1
            raise AssertionError("a mistake")

        original, inner._runner.read_states = inner._runner.read_states, mistaken
        inner.loop.call_soon_threadsafe(inner._poll_now.set)
        await until(lambda: polls >= 5)
        inner._runner.read_states = original
        await connected(one)

    asyncio.run(run())
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_malformed_messages_are_logged_once_a_breaker(
    make: Any, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        one, two = make(), make()
        await connected(one, two)
        await until(lambda: one._sync._worker._pubsub)
        keys = Keys("lr:", NAME)
        with redis.Redis.from_url(server.url) as client:
            for number in range(100):
                client.publish(keys.channel, f"odd {number}")
        two.get(NAME).breaker.open()
        await until(lambda: state_of(one) is State.OPEN)

    asyncio.run(run())
    logged = [line for line in caplog.messages if "are ignored" in line]
    assert 1 <= len(logged) <= 2  # one in each of two workers


def test_a_published_break_is_capped_like_an_answer(make: Any, server: RedisServer) -> None:
    async def run() -> None:
        one = make()
        await connected(one)
        await until(lambda: one._sync._worker._pubsub)
        with redis.Redis.from_url(server.url) as client:
            client.publish(Keys("lr:", NAME).channel, "wait 86400000")
        await until(lambda: one.get(NAME).occupancy.cooldown_remaining)
        assert (
            one.get(NAME).occupancy.cooldown_remaining <= one.get(NAME).policy.retry.max_retry_after
        )

    asyncio.run(run())


def test_closing_ends_the_thread_and_later_use_starts_another(make: Any) -> None:
    async def run() -> None:
        one = make()
        await connected(one)
        before = threading.active_count()
        one.close()
        one.close()
        assert threading.active_count() == before - 1
        await calls(one, fine, 1)
        await connected(one)
        assert threading.active_count() == before

    asyncio.run(run())


def test_without_an_address_the_log_says_once_that_state_is_local(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    guards = Guards(settings=load_settings({}))
    for name in ("llm", "embedding", "storage"):
        guards.get(name)
    logged = [
        record.getMessage() for record in caplog.records if "REDIS_URL" in record.getMessage()
    ]
    assert len(logged) == 1
    assert logged[0].startswith("Breakers are this process's own: RESILIENCE_REDIS_URL")


def test_no_secret_is_in_the_log_or_in_redis(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def confidential(prompt: str) -> None:
        raise ConnectionRefusedError(prompt)

    async def run(url: str) -> None:
        guards = Guards(settings=load_settings({"RESILIENCE_REDIS_URL": url}))
        guards.get(NAME)
        for _ in range(6):
            with suppress(CallRejected, ConnectionRefusedError):
                await guards.get(NAME).call(confidential, "top-secret-prompt")
        await asyncio.sleep(0.5)
        guards.close()

    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "top-secret-password")
        client.execute_command("AUTH", "top-secret-password")
        asyncio.run(run(server.url.replace("redis://", "redis://:top-secret-password@")))
        asyncio.run(run(server.url.replace("redis://", "redis://:top-secret-wrong@")))
        kept = [client.dump(key) for key in client.keys("*")]
    assert kept
    assert not any(b"top-secret" in (value or b"") for value in kept)
    assert "top-secret" not in caplog.text
