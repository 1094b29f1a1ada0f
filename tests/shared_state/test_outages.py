"""Redis fails in every way it can: no call notices, and afterwards all agree again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from lightrag_resilience.shared_state.messages import Keys
from lightrag_resilience.testing.redis_server import RedisServer
from lightrag_resilience.testing.tcp_proxy import TcpProxy
from support.workers import WorkerProcess, Workers, workers

KEYS = Keys("lr:", "llm.made-up")
WAITED_FOR_REDIS = 1.0  # seconds, the shortest that any command takes to fail
AGREE_WITHIN = 2.0  # seconds


@contextmanager
def proxy_to(server: RedisServer) -> Iterator[Callable[..., None]]:
    """A proxy in a thread; call what is given with the name of a switch."""
    ready, end = threading.Event(), asyncio.Event()
    made: list[Any] = []

    async def serve() -> None:
        async with TcpProxy(server.port) as proxy:
            made.extend([proxy, asyncio.get_running_loop()])
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(5)
    proxy, loop = made

    def switch(how: str, *values: float) -> None:
        loop.call_soon_threadsafe(lambda: getattr(proxy, how)(*values))

    switch.url = proxy.url  # type: ignore[attr-defined]
    try:
        yield switch
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()


@dataclass
class Outage:
    begin: Callable[[], object]
    end: Callable[[], object]


def outage_of(kind: str, server: RedisServer, switch: Callable[..., None]) -> Outage:
    client = redis.Redis.from_url(server.url)

    def config(key: str, value: str) -> Callable[[], object]:
        return lambda: client.config_set(key, value)

    return {
        "killed": lambda: Outage(server.kill, server.start),
        "hung": lambda: Outage(server.pause, server.resume),
        "read-only": lambda: Outage(
            lambda: client.replicaof("127.0.0.1", "1"), lambda: client.replicaof("NO", "ONE")
        ),
        "out of memory": lambda: Outage(config("maxmemory", "1"), config("maxmemory", "0")),
        "cut off": lambda: Outage(lambda: switch("drop"), lambda: switch("pass_on")),
        "stalled": lambda: Outage(lambda: switch("stall"), lambda: switch("pass_on")),
    }[kind]()


def lose_redis(all_workers: Workers) -> None:
    assert all(answer["at"] for answer in all_workers.each("until", connected=False))


def agree(all_workers: Workers, state: str) -> list[dict[str, Any]]:
    """All workers have this state in the same version, soon."""
    deadline = time.monotonic() + AGREE_WITHIN
    while True:
        answers = all_workers.each("snapshot")
        seen = {(answer["state"], answer["version"]) for answer in answers}
        is_shared = all(answer["connected"] for answer in answers)
        if is_shared and len(seen) == 1 and answers[0]["state"] == state:
            return answers
        assert time.monotonic() < deadline, answers
        time.sleep(0.02)


def lines_about_redis(worker: WorkerProcess) -> list[str]:
    """The log lines about Redis, once they say that it is available again."""
    deadline = time.monotonic() + 10
    while True:
        lines = [line for line in worker.request("snapshot")["log"] if "Redis" in line]
        if lines and "available again" in lines[-1]:
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


@pytest.mark.parametrize(
    "kind",
    [
        "killed",
        pytest.param("hung", marks=pytest.mark.redis),
        "read-only",
        "out of memory",
        "cut off",
        "stalled",
    ],
)
def test_an_outage_fails_no_call_and_all_workers_agree_afterwards(
    server: RedisServer, kind: str
) -> None:
    with proxy_to(server) as switch, workers(switch.url, number=3) as three:  # type: ignore[attr-defined]
        three.each("call", times=20)
        outage = outage_of(kind, server, switch)

        three.each("go_on", callers=20, pause=0.01)
        outage.begin()
        lose_redis(three)
        time.sleep(0.5)
        for counts in three.each("halt"):
            assert counts["fine"] > 100
            assert (counts["failed"], counts["refused"]) == (0, 0)
            assert counts["slowest"] < WAITED_FOR_REDIS

        # A breaker goes on by itself,
        three[0].request("behave", fails=5)
        counts = three[0].request("call", times=100)
        assert (counts["failed"], counts["refused"]) == (5, 95)
        assert [answer["state"] for answer in three.each("snapshot")] == [
            "open",
            "closed",
            "closed",
        ]
        assert counts["slowest"] < WAITED_FOR_REDIS

        # and what it found out alone reaches all.
        outage.end()
        agree(three, "open")

        # An open breaker stays open, through the outage and after it.
        outage.begin()
        lose_redis(three)
        assert [count["refused"] for count in three.each("call", times=50)] == [50] * 3
        outage.end()
        for answer in agree(three, "open"):
            assert answer["reason"] == "after 5 failures in a row, the last ConnectionRefusedError"
            assert 15 < answer["retry_after"] <= 30
        for worker in three:
            lines = lines_about_redis(worker)
            assert len(lines) in {2, 4}
            assert all("cannot be used" in line for line in lines[::2])
            assert all("available again" in line for line in lines[1::2])


def test_an_open_breaker_survives_a_loss_of_all_data(server: RedisServer) -> None:
    with workers(server.url) as four, redis.Redis.from_url(server.url) as client:
        four[0].request("control", how="open", reason="by Ada", open_for=50)
        before = agree(four, "open")[0]
        client.flushall()
        time.sleep(1.3)  # until all have looked
        for answer in agree(four, "open"):
            assert answer["version"] > before["version"]
            assert answer["reason"] == "by Ada"
            assert 30 < answer["retry_after"] <= 50
        assert [count["refused"] for count in four.each("call", times=20)] == [20] * 4


def test_lost_scripts_are_loaded_again(server: RedisServer) -> None:
    with workers(server.url) as four, redis.Redis.from_url(server.url) as client:
        client.script_flush()
        four[0].request("behave", fails=5)
        four[0].request("call", times=5)
        agree(four, "open")
        assert not any(answer["log"][1:] for answer in four.each("snapshot"))


def test_a_partitioned_worker_takes_over_the_state_of_the_others(server: RedisServer) -> None:
    with (
        proxy_to(server) as switch,
        workers(switch.url, number=1) as apart,  # type: ignore[attr-defined]
        workers(server.url, number=2) as others,
    ):
        apart[0].request("call", times=10)
        switch("stall")
        lose_redis(apart)
        others[0].request("behave", fails=5)
        others[0].request("call", times=5)
        agree(others, "open")
        assert apart[0].request("call", times=10)["fine"] == 10
        others[0].request("control", how="open", reason="by Ada", open_for=40)
        switch("pass_on")
        assert agree(Workers([*apart, *others]), "open")[0]["reason"] == "by Ada"


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda client: client.set(KEYS.state, "nonsense"),
        lambda client: client.hset(KEYS.state, "ver", "-7"),
        lambda client: client.hset(KEYS.state, mapping={"st": "nonsense", "till": "9" * 40}),
        lambda client: client.publish(KEYS.channel, "O 99 nonsense 1 because"),
        lambda client: client.publish(KEYS.channel, b"\xff\x00"),
        lambda client: client.publish(KEYS.channel, "H 99999999999999999999 0 0 nonsense"),
        lambda client: client.set(KEYS.window, "nonsense"),
    ],
)
def test_malformed_data_is_logged_and_ignored(
    server: RedisServer, corrupt: Callable[[Any], object]
) -> None:
    with workers(server.url, number=2) as two, redis.Redis.from_url(server.url) as client:
        two.each("call", times=20)
        time.sleep(0.15)  # for the report
        corrupt(client)
        two.each("call", times=20)
        two[0].request("behave", fails=5)
        two[0].request("call", times=5)
        agree(two, "open")
        logs = [line for answer in two.each("snapshot") for line in answer["log"]]
        complaints = [line for line in logs if "Malformed" in line]
        assert complaints
        assert not any("nonsense" in line for line in logs)


@pytest.mark.parametrize(
    ("url", "clause"),
    [
        ("redis://:wrong-password@127.0.0.1:{port}/0", "password"),
        ("redis://127.0.0.1:1/0", "nothing answers"),
        ("rediss://127.0.0.1:{port}/0", "TLS"),
    ],
)
def test_a_wrong_address_is_one_warning_and_calls_go_on(url: str, clause: str) -> None:
    with (
        RedisServer("--requirepass", "right-password") as server,
        workers(url.format(port=server.port), number=1, finds_redis=False) as one,
    ):
        one[0].request("call", times=10)
        one[0].request("behave", fails=5)
        time.sleep(1.2)  # for several tries
        counts = one[0].request("call", times=20)
        assert (counts["failed"], counts["refused"]) == (5, 15)
        warnings = [line for line in one[0].request("snapshot")["log"] if "Redis" in line]
        assert len(warnings) == 1
        assert warnings[0].startswith("Redis cannot be used, so each process goes on")
        assert clause in warnings[0]
        assert "password@" not in warnings[0]
