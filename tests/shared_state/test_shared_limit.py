"""What all workers send together: real processes and a real server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lightrag_resilience.testing.redis_server import RedisServer
from support.workers import Workers, workers

WINDOW = 2.0  # seconds
PATIENT: Any = {"LIMIT__MAX_WAIT": "60", "TIMEOUT__TOTAL": "600"}
REQUESTS: Any = {
    "LIMIT__RPM": "3000",
    "LIMIT__BURST": "10",
    **PATIENT,
}  # 100 in a window, 10 at once
IN_A_WINDOW = 100


def sent_by(all_workers: Workers) -> list[float]:
    return sorted(at for answer in all_workers.each("sent") for at in answer["sent"])


def most_in_a_window(times: list[float]) -> int:
    most = first = 0
    for count, at in enumerate(times, 1):
        while times[first] <= at - WINDOW:
            first += 1
        most = max(most, count - first)
    return most


def begin(all_workers: Workers, callers: int = 20) -> None:
    all_workers.each("behave", fails=0, takes=0.005)
    all_workers.each("go_on", callers=callers, pause=0.0)


def test_four_processes_together_keep_one_limit(server: RedisServer) -> None:
    with workers(server.url, **REQUESTS) as four:
        begin(four)
        time.sleep(5)
        counts = four.each("halt")
        times = sent_by(four)
        assert 100 * most_in_a_window(times) <= 115 * IN_A_WINDOW
        assert len(times) >= 0.9 * IN_A_WINDOW * 5 / WINDOW
        assert sum(count["refused"] for count in counts) == 0
        shares = [count["ran"] for count in counts]
        assert min(shares) > 0.15 * sum(shares)


def test_tokens_are_settled_by_their_real_use(server: RedisServer) -> None:
    """After a while, as callers that wait already keep their turns."""
    variables: Any = {"LIMIT__TPM": "30000", "LIMIT__TOKEN_BURST": "100", **PATIENT}
    with workers(server.url, number=2, **variables) as two:
        two.each("use_tokens", booked=50, used=10)
        begin(two, callers=5)
        time.sleep(2)
        two.each("sent")
        time.sleep(4)
        two.each("halt")
        times = sent_by(two)
        assert 10 * most_in_a_window(times) <= 1.25 * 500 * WINDOW
        assert 10 * len(times) >= 0.8 * 500 * 4


@pytest.mark.parametrize("kind", ["kill", "pause"])
def test_without_redis_each_worker_keeps_its_share_of_the_limit(
    server: RedisServer, kind: str
) -> None:
    with workers(server.url, **REQUESTS) as four:
        begin(four)
        time.sleep(1.5)
        getattr(server, kind)()
        assert all(answer["at"] for answer in four.each("until", connected=False))
        four.each("sent")
        time.sleep(3)
        times = sent_by(four)
        assert most_in_a_window(times) <= 1.3 * IN_A_WINDOW
        assert len(times) >= 0.7 * IN_A_WINDOW * 3 / WINDOW
        {"kill": server.start, "pause": server.resume}[kind]()
        assert all(answer["at"] for answer in four.each("until", connected=True))
        time.sleep(1)
        assert sum(count["refused"] for count in four.each("halt")) == 0


def test_a_turn_due_too_late_is_rejected_with_retry_after(
    server: RedisServer,
) -> None:
    variables: Any = {"LIMIT__RPM": "60", "LIMIT__BURST": "1", "LIMIT__MAX_WAIT": "2"}
    with workers(server.url, number=1, **variables) as one:
        counts = one[0].request("call", times=20, at_once=20)
        assert (counts["fine"], counts["refused"]) == (3, 17)
        assert counts["last_refusal"].startswith(
            "Rate limit of 'llm.made-up' is used up by all workers together; try again in"
        )


def test_a_cancelled_caller_leaves_its_turn_to_others(server: RedisServer) -> None:
    variables: Any = {"LIMIT__RPM": "600", "LIMIT__BURST": "1", **PATIENT}
    with workers(server.url, number=1, **variables) as one:
        one[0].request("go_on", callers=100, pause=0.0)
        assert one[0].request("halt")["cancelled"] <= 100
        began = time.monotonic()
        assert one[0].request("call", times=5)["fine"] == 5
        assert time.monotonic() - began < 5.0  # 10 s if all had kept their turns


def test_one_429_cools_down_all_workers(server: RedisServer) -> None:
    with workers(server.url, **PATIENT) as four:
        begin(four, callers=5)
        time.sleep(0.3)
        answer: Any = four[0].request("be_throttled", seconds=2.0)
        time.sleep(0.1)  # for the news, and for what is under way
        four.each("sent")
        time.sleep(1.5)
        assert sent_by(four) == []
        time.sleep(1.2)
        four.each("halt")
        times = sent_by(four)
        assert times[0] >= answer["at"] + 2.0
        assert len(times) > 100


def test_a_period_of_429s_costs_few_calls_and_fails_no_caller(server: RedisServer) -> None:
    """Each worker tries one call after each wait; a call that is not made is no loss."""
    with workers(server.url, RETRY__ATTEMPTS="4", **PATIENT) as four:
        began = time.monotonic()
        end = began + 6.0
        four.each("throttle", until=end, seconds=1.0)
        four.each("go_on", callers=10, pause=0.01)
        time.sleep(8.5)
        states = {answer["state"] for answer in four.each("snapshot")}
        counts = four.each("halt")
        times = sent_by(four)
        assert states == {"closed"}
        assert sum(count["failed"] + count["refused"] for count in counts) == 0
        throttled = [at for at in times if at < end]
        later = [at for at in throttled if at > throttled[0] + 0.2]
        assert len(later) <= 4 * 6
        for at in later:  # a wait begins with the first 429, and its news takes a moment
            assert not any(at - 0.95 < other < at - 0.2 for other in throttled)
        assert len(times) - len(throttled) > 1000


def test_all_workers_share_one_retry_budget_in_an_outage(server: RedisServer) -> None:
    variables: Any = {"RETRY__ATTEMPTS": "3", "RETRY__INITIAL_BACKOFF": "0.001"}
    with workers(server.url, MODE="metrics-only", **variables) as four:
        four.each("until_workers", number=4)
        four.each("behave", fails=1e9)
        counts = four.each("call", times=300, at_once=10)
        assert [count["failed"] for count in counts] == [300] * 4
        extra = sum(count["ran"] for count in counts) - 1200
        assert 80 <= extra <= 100  # 500 tokens, 5 for each


def test_a_worker_forked_with_waiting_callers_starts_with_none(server: RedisServer) -> None:
    with workers(server.url, number=1, **REQUESTS) as one:
        begin(one, callers=5)
        assert one[0].request("call_in_a_child", times=20) == {"ok": True}
        assert one[0].request("halt")["failed"] == 0
