"""Of all workers together, one at a time looks for the recovery in the background."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable

import pytest

from lightrag_resilience import CircuitOpenError, Guards
from lightrag_resilience.testing.redis_server import RedisServer
from support.guards import Scripted
from support.waiting import until
from support.workers import Workers, workers


def open_all(all_workers: Workers) -> None:
    all_workers.each("set_probe")
    all_workers[0].request("control", how="open", reason="after a test", open_for=0.2)
    assert all(answer["at"] for answer in all_workers.each("until", state="open"))


def spans_of(all_workers: Workers) -> list[list[float]]:
    answers = all_workers.each("background_probes")
    return sorted(span for answer in answers for span in answer["spans"])


def test_one_worker_at_a_time_probes_and_no_call_does(server: RedisServer) -> None:
    with workers(server.url, OPEN_FOR="0.2", OPEN_MAX="0.4") as four:
        four.each("behave", fails=1e9, takes=0.05)
        open_all(four)
        four.each("go_on", callers=20, pause=0.01)
        time.sleep(4)
        counts = four.each("halt")
        spans = spans_of(four)
        assert len(spans) >= 3
        assert sum(count["ran"] for count in counts) <= len(spans) + 1  # the last may still run
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
        assert {count["failed"] for count in counts} == {0}
        four.each("behave", fails=0)
        assert all(answer["at"] for answer in four.each("until", state="closed"))


def test_another_worker_takes_over_from_one_that_was_killed_in_its_probe(
    server: RedisServer,
) -> None:
    with workers(server.url, number=2, OPEN_FOR="0.2") as two:
        two.each("behave", fails=0, takes=60)
        open_all(two)
        assert two[1].request("until", state="half-open")["at"]
        deadline = time.monotonic() + 10
        while not (probes := [each.request("snapshot")["probes"] for each in two]) or not any(
            probes
        ):
            assert time.monotonic() < deadline
        prober = probes.index(1)
        other = two[1 - prober]
        other.request("behave", fails=0, takes=0)
        two[prober].kill()
        assert other.request("until", state="closed")["at"]
        assert len(other.request("background_probes")["spans"]) == 1


def test_a_slow_probe_keeps_its_permit(server: RedisServer) -> None:
    with workers(server.url, number=2, OPEN_FOR="0.2") as two:
        two.each("behave", fails=0, takes=7.0)
        open_all(two)
        assert all(answer["at"] for answer in two.each("until", state="closed"))
        assert len(spans_of(two)) in {2, 3}  # further requests beside it, every 3.5 s, no permit


@pytest.mark.anyio
async def test_a_permit_that_a_call_requested_is_used_by_it(make: Callable[..., Guards]) -> None:
    """It makes the circuit half-open, which begins the background probe of its own worker."""
    guards = make()
    guard = guards.get("llm")
    guard.set_probe(Scripted("ok"))
    await guard.call(Scripted("first"))
    await until(lambda: guards.link is not None and guards.link.is_up)
    guard.breaker.open("by Ada (isolated)", open_for=0.2)  # nothing is probed before its end
    await asyncio.sleep(0.4)
    async with asyncio.timeout(3.0):
        while True:  # a busy machine's background probe may come first
            with contextlib.suppress(CircuitOpenError):
                assert await guard.call(Scripted("answer")) == "answer"
                break
            await asyncio.sleep(0.05)
