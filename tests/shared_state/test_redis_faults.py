"""Whatever step of talking to Redis fails, and however: sharing goes on within moments."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from lightrag_resilience import BreakerPolicy, LimitPolicy, State
from lightrag_resilience.events import Events
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state import sync_thread as worker
from lightrag_resilience.shared_state.messages import CooldownMessage, Reply, policy_as_json
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.shared_state.shared_breaker import SharedBreaker
from lightrag_resilience.shared_state.synchronizer import Synchronizer
from lightrag_resilience.testing.redis_server import RedisServer

POLICY = BreakerPolicy(consecutive_failures=5, open_for=60.0)
NAMES = ("llm", "embedding", "storage.orders")
STEPS = 50  # of a worker's connections: those of its start, and a few polls and reports
PATIENCE = 20.0  # seconds, on a busy machine
KINDS: list[Callable[[], BaseException]] = [
    lambda: RedisConnectionError("made up"),
    lambda: RedisTimeoutError("made up"),
    lambda: ConnectionResetError("made up"),
    lambda: RuntimeError("a mistake of redis-py"),
    lambda: asyncio.CancelledError("that nothing asked for"),
    lambda: SystemExit(3),
]


class Faults:
    """Which steps fail, of all connections together; each once."""

    def __init__(self, at: dict[int, BaseException]) -> None:
        self.at = at
        self.steps = itertools.count()

    def step(self) -> None:
        if (error := self.at.pop(next(self.steps), None)) is not None:
            raise error

    def client(self, url: str) -> Any:
        faults = self
        client: Any = make_client(url)

        class Faulty(Connection):
            async def connect(self) -> None:
                faults.step()
                await super().connect()  # type: ignore[no-untyped-call, unused-ignore]

            async def send_packed_command(self, *args: Any, **options: Any) -> None:
                faults.step()
                await super().send_packed_command(*args, **options)

            async def read_response(self, *args: Any, **options: Any) -> Any:
                faults.step()
                return await super().read_response(*args, **options)

        client.connection_pool.connection_class = Faulty
        return client


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Poll and report at short intervals."""
    for name, seconds in {"_POLL_EVERY": 0.03, "_RETRY_EVERY": 0.005, "_BATCH": 0.005}.items():
        monkeypatch.setattr(worker, name, seconds)
    return monkeypatch


def until(condition: Callable[[], object], what: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@contextlib.contextmanager
def synchronizer(url: str) -> Iterator[tuple[Synchronizer, list[SharedBreaker]]]:
    sync = Synchronizer(url, "lr:")
    breakers = [sync.breaker(name, POLICY, Events()) for name in NAMES]
    sync.begin()
    try:
        yield sync, breakers
    finally:
        sync.close()


async def of_the_cluster(url: str, work: Callable[[ScriptRunner], Any]) -> Any:
    client: Any = make_client(url)
    try:
        return await work(ScriptRunner(client, "other"))
    finally:
        await client.aclose()


def force_state(url: str, name: str, state: State) -> Reply:
    ref = BreakerRef("lr:", name, policy_as_json(POLICY))
    work = of_the_cluster(
        url, lambda runner: runner.force_state(ref, state, "by Ada", open_for=60.0)
    )
    return asyncio.run(work)  # type: ignore[no-any-return]


def use(sync: Synchronizer, breakers: list[SharedBreaker]) -> None:
    """A little of everything that calls make the thread do."""
    for breaker in breakers:
        with contextlib.suppress(Exception):
            breaker.on_failure(breaker.acquire(), 0.1)
            breaker.on_success(breaker.acquire(), 0.1)
    sync.cool_down(NAMES[0], 0.5)
    sync.request_probe(breakers[1], 60.0, lambda: None)


def shares_again(sync: Synchronizer, breakers: list[SharedBreaker], url: str, what: object) -> None:
    """Messages of another worker arrive, and reports of this one reach Redis."""
    until(lambda: sync.connected, what)
    force_state(url, NAMES[0], State.OPEN)
    until(lambda: breakers[0].state is State.OPEN, what)
    force_state(url, NAMES[0], State.CLOSED)
    until(lambda: breakers[0].state is State.CLOSED, what)

    def reports_arrive() -> bool:
        breakers[2].on_failure(breakers[2].acquire(), 0.1)
        for _ in range(2):  # fewer failures than trip it, however often this runs
            breakers[2].on_success(breakers[2].acquire(), 0.1)
        ref = BreakerRef("lr:", NAMES[2], policy_as_json(POLICY))
        described = asyncio.run(of_the_cluster(url, lambda runner: runner.describe(ref)))
        return bool(described.failed)

    breakers[2].close()
    until(reports_arrive, what)


@pytest.mark.parametrize(
    "kind", [0, *(pytest.param(kind, marks=pytest.mark.no_cover) for kind in range(1, len(KINDS)))]
)
def test_sharing_survives_any_error_at_any_step(
    server: RedisServer, quick: pytest.MonkeyPatch, kind: int
) -> None:
    chance = random.Random(f"faults {kind}")
    for step in range(0, STEPS, 2):
        again = step + chance.randint(1, 4)  # two in one moment, of which the second may differ
        at = {step: KINDS[kind](), again: chance.choice(KINDS)()}
        faults, what = Faults(at), f"{at}"
        quick.setattr(worker, "make_client", faults.client)
        before = threading.active_count()
        with synchronizer(server.url) as (sync, breakers):
            for _ in range(50):
                use(sync, breakers)
                if not at:
                    break
                time.sleep(0.01)
            else:
                until(lambda: not at, what)  # noqa: B023 - it is asked here and now
            shares_again(sync, breakers, server.url, what)
        assert threading.active_count() == before


def test_a_cooldown_of_a_breaker_without_limits_is_ignored(
    server: RedisServer, quick: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with synchronizer(server.url) as (sync, breakers):
        until(lambda: sync.connected, "at first")
        channel = breakers[0].ref.channel
        published = of_the_cluster(
            server.url, lambda runner: runner.publish(channel, lambda: CooldownMessage(1.0))
        )
        asyncio.run(published)
        shares_again(sync, breakers, server.url, "after it")
    assert "Redis" not in caplog.text


def test_thirty_breakers_under_load_recover_soon_after_a_stall(server: RedisServer) -> None:
    sync, over = Synchronizer(server.url, "lr:"), threading.Event()
    breakers = [sync.breaker(f"llm.{number}", POLICY, Events()) for number in range(30)]

    def call() -> None:
        while not over.wait(0.01):
            use(sync, breakers)

    load = threading.Thread(target=call)
    load.start()
    try:
        until(lambda: sync.connected, "at first")
        for seconds in (1.6, 2.2):
            server.pause()
            time.sleep(seconds)
            server.resume()
            until(lambda: sync.connected, seconds)
        over.set()
        load.join()
        fresh = [sync.breaker(name, POLICY, Events()) for name in NAMES]
        shares_again(sync, fresh, server.url, "after the stalls")
    finally:
        over.set()
        load.join()
        sync.close()


def test_only_the_longest_cooldown_of_a_stall_is_published_with_its_remaining_time(
    server: RedisServer,
) -> None:
    with synchronizer(server.url) as (sync, breakers), redis.Redis.from_url(server.url) as client:
        until(lambda: sync.connected, "at first")
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        pubsub.subscribe(*(breaker.ref.channel for breaker in breakers))
        for _ in breakers:
            pubsub.get_message(timeout=1.0)
        server.pause()
        asked_at = time.monotonic()
        for _ in range(400):
            sync.cool_down(NAMES[0], 30.0)
        thread: Any = sync._worker
        until(lambda: thread._cooldowns, "the thread has them")
        assert len(thread._tasks) < 20
        until(lambda: not sync.connected, "the stall is seen")
        sync.cool_down(NAMES[1], 0.01)  # over when Redis is available again
        time.sleep(0.3)
        server.resume()
        until(lambda: sync.connected and not thread._cooldowns, "it was not published")
        waited = time.monotonic() - asked_at
        published = []
        while (message := pubsub.get_message(timeout=0.3)) is not None:
            published.append((message["channel"].decode(), int(message["data"].split()[1])))
    # The one that was being sent when the stall began may have arrived all the same.
    assert {channel for channel, _ in published} == {breakers[0].ref.channel}
    assert len(published) <= 2
    assert all(30_000 - waited * 1000 - 1 <= left <= 30_000 for _, left in published)


# ---------------------------------------------------------------------- the thread


def test_an_ended_thread_is_restarted_and_logged(
    server: RedisServer, quick: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(url: str) -> Any:
        raise MemoryError("made up")

    quick.setattr(worker, "make_client", broken)
    now = [0.0]
    sync = Synchronizer(server.url, "lr:", clock=lambda: now[0])
    breakers = [sync.breaker(name, POLICY, Events()) for name in NAMES]
    sync.begin()
    first: Any = sync._worker
    until(lambda: not first.is_alive, "it ends")
    assert not sync.connected
    quick.setattr(worker, "make_client", make_client)
    sync.begin()
    assert sync._worker is first  # not again and again: in a while
    now[0] += 1.0
    sync.begin()
    shares_again(sync, breakers, server.url, "in the second thread")
    sync.close()
    assert "The thread that shares breakers through Redis ended; it starts again" in caplog.messages


@pytest.mark.parametrize(
    ("fails", "error", "clause"),
    [
        ("threading.Thread.start", RuntimeError("can't start new thread"), "no more threads"),
        ("asyncio.new_event_loop", OSError(24, "Too many open files"), "no more files"),
    ],
)
def test_calls_go_on_while_no_thread_can_start(
    server: RedisServer, caplog: pytest.LogCaptureFixture, fails: str, error: Exception, clause: str
) -> None:
    now = [0.0]
    sync = Synchronizer(server.url, "lr:", clock=lambda: now[0])
    breakers = [sync.breaker(name, POLICY, Events()) for name in NAMES]

    def fail(*_: Any) -> Any:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fails, fail)
        for _ in range(5):
            breakers[0].on_failure(breakers[0].acquire(), 0.1)
    assert breakers[0].state is State.OPEN
    assert not sync.connected
    (published,) = (
        record.getMessage() for record in caplog.records if "Redis" in record.getMessage()
    )
    assert clause in published
    now[0] += 1.0
    sync.begin()
    until(lambda: sync.connected, "now there is one")
    sync.close()


def test_sharing_without_breakers_works(
    server: RedisServer, quick: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sync = Synchronizer(server.url, "lr:")
    sync.limit("llm", LimitPolicy())
    sync.begin()
    until(lambda: sync.connected, "at first")
    time.sleep(0.1)
    assert sync.connected
    assert "Redis" not in caplog.text
    breakers = [sync.breaker(name, POLICY, Events()) for name in NAMES]
    shares_again(sync, breakers, server.url, "with its first breakers")
    sync.close()
