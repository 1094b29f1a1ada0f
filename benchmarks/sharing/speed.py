"""How fast a trip spreads, how exact the probes are, and how seldom Redis is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

from benchmarks.footprint import commands_of_clients
from benchmarks.sharing.cluster import cluster

__all__ = [
    "Spread",
    "probes",
    "propagation",
    "round_trips",
    "sent_for_closed_calls",
    "sent_for_open_calls",
    "spread",
]

_QUOTA = 3
_CALLERS = 100
_PROBE = 0.02  # seconds
_ONE_BATCH = 0.1  # seconds
_ONE_POLL = 0.8  # seconds: as often as they come


@dataclass(frozen=True, slots=True)
class Spread:
    """Of many samples: how many there are, half and 99 % of them, and all of them, are below."""

    samples: int
    p50: float
    p99: float
    most: float


def spread(values: list[float]) -> Spread:
    """By nearest rank."""
    ranked = sorted(values)
    last = len(ranked) - 1
    return Spread(len(ranked), ranked[last // 2], ranked[round(last * 0.99)], ranked[-1])


def propagation(trips: int) -> Spread:
    """Seconds from a trip in one process until another refuses: three samples a trip."""
    late = []
    with cluster(OPEN_FOR="60", OPEN_MAX="60") as four:
        for trip in range(trips):
            tripped = four.workers[trip % 4].request("trip")
            others = four.workers[: trip % 4] + four.workers[trip % 4 + 1 :]
            late += [worker.request("refuses_since") - tripped for worker in others]
            four.workers[trip % 4].request("control", how="close")
            four.all("is_in", state="closed")
    return spread(late)


def probes(rounds: int) -> list[int]:
    """For each round, the calls that half-open breakers of four processes let through; quota 3."""
    counted = []
    with cluster(PROBES=str(_QUOTA)) as four:
        four.all("behave", takes=_PROBE)
        for _ in range(rounds):
            four.workers[0].request("control", how="open", open_for=0.2)
            four.all("is_in", state="open")
            four.all("begin", callers=_CALLERS, pause=0.01)
            four.all("is_in", state="closed")
            counted.append(sum(one["probes"] for one in four.all("end")))
    return counted


def sent_for_closed_calls(calls: int) -> tuple[int, int]:
    """Scripts that Redis ran for calls in a closed circuit, and batches that may have been due."""
    with cluster(1) as one:
        before = one.sent().get("evalsha", 0)
        took = one.workers[0].request("calls", number=calls)
        ran = one.sent().get("evalsha", 0) - before
    return ran, int(took / _ONE_BATCH) + 1


def sent_for_open_calls(calls: int) -> tuple[int, int]:
    """Scripts that Redis ran while an open circuit refused calls, and polls that may be due."""
    with cluster(1, OPEN_FOR="120", OPEN_MAX="120") as one:
        one.workers[0].request("trip")
        one.all("control", how="open", open_for=120)
        time.sleep(_ONE_BATCH)
        before = one.sent().get("evalsha", 0)
        took = one.workers[0].request("refusals", number=calls)
        ran = one.sent().get("evalsha", 0) - before
    return ran, 2 * (int(took / _ONE_POLL) + 1)  # and it is shown that it is there


def round_trips(seconds: float) -> tuple[float, int]:
    """Commands for Redis for each 1000 calls of 50 ms by 20 callers in four processes; calls.

    Every command counts, also those that travel together with others.
    """
    with cluster() as four, redis.Redis.from_url(four.server.url) as client:
        four.all("behave", takes=0.05)
        four.all("begin", callers=20)
        time.sleep(0.5)
        four.all("take")
        before = commands_of_clients(client)
        time.sleep(seconds)
        sent = commands_of_clients(client) - before
        calls = sum(one["made"] for one in four.all("take"))
    return sent / calls * 1000, calls
