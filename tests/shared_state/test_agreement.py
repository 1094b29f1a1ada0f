"""What one worker sees all workers do: real processes and a real server."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import redis

from lightrag_resilience.testing.redis_server import RedisServer
from support.scripts import output_of
from support.workers import Workers, workers

FAILING = 1e9


def trip(all_workers: Workers, by: int = 0) -> dict[str, Any]:
    all_workers[by].request("behave", fails=5)
    answer: dict[str, Any] = all_workers[by].request("call", times=5)
    return answer


def states(all_workers: Workers) -> set[str]:
    return {answer["state"] for answer in all_workers.each("snapshot")}


def test_a_trip_of_one_worker_opens_all_workers(server: RedisServer) -> None:
    with workers(server.url) as four:
        assert trip(four)["failed"] == 5
        for answer in four.each("until", state="open"):
            assert answer["reason"] == "after 5 failures in a row, the last ConnectionRefusedError"
        assert [counts["refused"] for counts in four.each("call", times=10)] == [10] * 4


def test_a_forced_state_holds_in_all_workers(server: RedisServer) -> None:
    with workers(server.url) as four:
        four[1].request("control", how="open", reason="by Ada: maintenance", open_for=600)
        for answer in four.each("until", state="open"):
            assert answer["reason"] == "by Ada: maintenance"
            assert 590 < answer["retry_after"] <= 600
        four[2].request("control", how="close")
        four.each("until", state="closed")
        assert [counts["fine"] for counts in four.each("call", times=10)] == [10] * 4


def test_failures_spread_over_workers_open_all_workers(server: RedisServer) -> None:
    """Three of four calls fail, too few in any three workers."""
    with workers(server.url, CONSECUTIVE_FAILURES="none", MIN_CALLS="50") as four:
        for _ in range(4):
            four.each("behave", fails=3)
            four.each("call", times=4)
        for answer in four.each("until", state="open"):
            assert answer["reason"].endswith(
                "calls failed in 4 workers, the last ConnectionRefusedError"
            )


def test_a_run_of_failures_spread_over_workers_opens_all_workers(server: RedisServer) -> None:
    """Each worker fails too seldom to open by itself; by default evidence decides."""
    with workers(server.url, CONSECUTIVE_FAILURES="none", FAILURE_RATE="none") as four:
        for _ in range(2):
            for worker in four:
                worker.request("behave", fails=1)
                worker.request("call", times=1)
        for answer in four.each("until", state="open"):
            assert "failures in a row in 4 workers, the last" in answer["reason"]


def test_a_quorum_keeps_one_worker_from_opening_the_cluster(server: RedisServer) -> None:
    with workers(server.url, QUORUM="2") as four:
        trip(four)
        assert four[0].request("snapshot")["state"] == "open"
        time.sleep(0.3)  # as long as the news would take many times over
        assert [answer["state"] for answer in four.each("snapshot")] == ["open", *["closed"] * 3]
        assert four[0].request("snapshot")["is_diverged"]
        four[0].request("behave", fails=FAILING)
        trip(four, by=1)
        assert [answer["state"] for answer in four.each("until", state="open")] == ["open"] * 4


def test_slow_calls_are_summed_over_all_workers(server: RedisServer) -> None:
    with workers(server.url, SLOW_CALL="0.001", MIN_CALLS="20", SLOW_RATE="0.9") as four:
        four.each("behave", fails=0, takes=0.002)
        four.each("call", times=8)
        for answer in four.each("until", state="open"):
            assert answer["reason"].endswith("calls were slow")


def test_breaks_in_a_row_grow_longer_in_all_workers(server: RedisServer) -> None:
    with workers(server.url, number=2, OPEN_FOR="0.2", OPEN_GROWTH="2", OPEN_MAX="60") as two:
        trip(two)
        two[1].request("until", state="open")
        two[1].request("behave", fails=FAILING)
        two[1].request("go_on", callers=1, pause=0.005)
        for _ in range(2000):
            answer = two[0].request("snapshot")
            if answer["opens"] == 3:
                break
            time.sleep(0.005)
        assert answer["opens"] == 3
        assert answer["reason"] == "after a probe failed with ConnectionRefusedError"
        assert 0.4 < answer["retry_after"] <= 0.8


def test_a_worker_that_starts_later_finds_the_breaker_open(server: RedisServer) -> None:
    with workers(server.url, number=1) as first:
        trip(first)
        with workers(server.url, number=1) as second:
            assert second[0].request("until", state="open")["at"]


def test_a_closed_breaker_sends_redis_only_batches(server: RedisServer) -> None:
    with workers(server.url, number=1) as one, redis.Redis.from_url(server.url) as client:
        one[0].request("call", times=100, at_once=100)
        before: Any = client.info("stats")
        began = time.monotonic()
        assert one[0].request("call", times=10_000, at_once=100)["fine"] == 10_000
        took = time.monotonic() - began
        after: Any = client.info("stats")
        commands = after["total_commands_processed"] - before["total_commands_processed"]
        inside = 12  # commands that a script runs itself count, too
        assert commands <= 10 + (10 * took + 3) * inside


def test_an_open_breaker_rejects_without_a_command_to_redis(server: RedisServer) -> None:
    with workers(server.url, number=1) as one, redis.Redis.from_url(server.url) as client:
        trip(one)
        time.sleep(0.3)  # for the report
        before: Any = client.info("commandstats")
        began = time.monotonic()
        assert one[0].request("call", times=10_000, at_once=100)["refused"] == 10_000
        took = time.monotonic() - began
        after: Any = client.info("commandstats")
        scripts = after["cmdstat_evalsha"]["calls"] - before["cmdstat_evalsha"]["calls"]
        assert scripts <= 2 * took + 2  # polls


def test_a_child_forked_after_use_has_a_thread_and_client_of_its_own(server: RedisServer) -> None:
    script = f"""
import asyncio, os, sys, time
os.environ["RESILIENCE_REDIS_URL"] = {server.url!r}
os.environ["RESILIENCE_LLM__RETRY__ATTEMPTS"] = "1"
from lightrag_resilience import CircuitOpenError, guard, guards

async def fail():
    raise ConnectionRefusedError

async def until(state):
    for _ in range(5000):
        breaker = guard("llm").breaker
        if breaker._sync.connected and breaker.state.value == state:
            return True
        await asyncio.sleep(0.001)

async def fine():
    return 1

async def parent():
    await guard("llm").call(fine)
    assert await until("closed")

async def child(fails):
    await guard("llm").call(fine)  # a child finds Redis with its first call
    if fails:
        for _ in range(8):
            try:
                await guard("llm").call(fail)
            except (ConnectionRefusedError, CircuitOpenError):
                pass
    assert await until("open")

asyncio.run(parent())
children = []
for number in range(3):
    pid = os.fork()
    if not pid:
        asyncio.run(child(number == 2))
        guards().close()  # sends what is due
        os._exit(0)
    children.append(pid)
print([os.waitpid(pid, 0)[1] for pid in children])
asyncio.run(until("open"))
print(guard("llm").breaker.state.value)
"""
    warnings = ("-W", "ignore::DeprecationWarning")  # Python 3.12 warns of any fork with threads
    assert output_of(script, *warnings)[0] == "[0, 0, 0]\nopen\n"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="earlier Pythons do not warn")
def test_importing_and_decorating_start_no_thread(
    server: RedisServer,
) -> None:
    script = f"""
import os
os.environ["RESILIENCE_REDIS_URL"] = {server.url!r}
from lightrag_resilience import guard, resilient

@resilient("llm")
async def complete(): ...

guard("embedding")
if not os.fork():
    os._exit(0)
os.wait()
"""
    assert output_of(script, "-W", "error") == ("", "")


def test_two_event_loops_in_one_process_share_one_breaker(server: RedisServer) -> None:
    script = f"""
import asyncio, os, threading
os.environ["RESILIENCE_REDIS_URL"] = {server.url!r}
os.environ["RESILIENCE_LLM__RETRY__ATTEMPTS"] = "1"
from lightrag_resilience import CircuitOpenError, guard, guards

async def fail():
    raise ConnectionRefusedError

async def calls(barrier, seen):
    for _ in range(20):
        try:
            await guard("llm").call(fail)
        except CircuitOpenError:
            seen.append("refused")
        except ConnectionRefusedError:
            seen.append("failed")
        await asyncio.sleep(0.01)

seen = []
threads = [threading.Thread(target=lambda: asyncio.run(calls(None, seen))) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(seen.count("failed"), seen.count("refused"))
asyncio.run(calls(None, seen))
print(seen.count("failed"))
guards().close()
print(threading.active_count())
"""
    failed, refused, again, left = output_of(script)[0].split()
    assert int(failed) + int(refused) == 40
    assert 5 <= int(failed) <= 6  # the second loop may be on its way
    assert again == failed
    assert left == "1"


def test_closing_ends_sharing_at_any_moment(server: RedisServer) -> None:
    """Also while it connects, when redis-py loses cancellations."""
    script = f"""
import asyncio, os, threading, time
os.environ["RESILIENCE_REDIS_URL"] = {server.url!r}
from lightrag_resilience import CircuitOpenError, guard, guards

async def main():
    await guard("llm").call(asyncio.sleep, 0)

for number in range(30):
    asyncio.run(main())
    time.sleep(number / 5000)
    guards().close()
print(threading.active_count())
"""
    assert output_of(script, "-W", "error") == ("1\n", "")


def test_an_ended_worker_has_no_thread_left(server: RedisServer) -> None:
    script = f"""
import asyncio, os, threading
os.environ["RESILIENCE_REDIS_URL"] = {server.url!r}
from lightrag_resilience import CircuitOpenError, guard, guards

async def fine():
    return 1

async def main():
    await guard("llm").call(fine)

asyncio.run(main())
guards().close()
assert threading.active_count() == 1
asyncio.run(main())
"""
    assert output_of(script, "-W", "error") == ("", "")
