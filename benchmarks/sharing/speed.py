"""How fast a trip spreads, how exact the probes are, and how seldom Redis is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.sharing.cluster import cluster

__all__ = ["Spread", "probes", "propagation", "round_trips", "sent_for_closed_calls", "spread"]

_QUOTA = 3
_CALLERS = 100
_PROBE = 0.02  # seconds
_ONE_BATCH = 0.1  # seconds


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
            tripped = four.workers[trip % 4].ask("trip")
            others = four.workers[: trip % 4] + four.workers[trip % 4 + 1 :]
            late += [worker.ask("refuses_since") - tripped for worker in others]
            four.workers[trip % 4].ask("steer", how="close")
            four.all("is_in", state="closed")
    return spread(late)


def probes(rounds: int) -> list[int]:
    """For each round, the calls that half-open breakers of four processes let through; quota 3."""
    counted = []
    with cluster(PROBES=str(_QUOTA)) as four:
        four.all("behave", takes=_PROBE)
        for _ in range(rounds):
            four.workers[0].ask("steer", how="open", open_for=0.2)
            four.all("is_in", state="open")
            four.all("begin", callers=_CALLERS, pause=0.01)
            four.all("is_in", state="closed")
            counted.append(sum(told["probes"] for told in four.all("end")))
    return counted


def sent_for_closed_calls(calls: int) -> tuple[int, int]:
    """Scripts that Redis ran for calls in a closed circuit, and batches that may have been due."""
    with cluster(1) as one:
        before = one.sent().get("evalsha", 0)
        took = one.workers[0].ask("calls", number=calls)
        ran = one.sent().get("evalsha", 0) - before
    return ran, int(took / _ONE_BATCH) + 1


def round_trips(seconds: float) -> tuple[float, int]:
    """Commands for Redis for each 1000 calls of 50 ms by 20 callers in four processes; calls.

    Every command counts, also those that travel together with others.
    """
    with cluster() as four:
        four.all("behave", takes=0.05)
        four.all("begin", callers=20)
        time.sleep(0.5)
        four.all("take")
        before = _commands(four.sent())
        time.sleep(seconds)
        sent = _commands(four.sent()) - before
        calls = sum(told["made"] for told in four.all("take"))
    return sent / calls * 1000, calls


def _commands(sent: dict[str, int]) -> int:
    """Those that a client sends: what scripts call is counted by the server, too."""
    within_scripts = {"time", "hget", "hmget", "hset", "hdel", "hvals", "hgetall", "hincrby"}
    within_scripts |= {"del", "pexpire", "info", "client|setinfo", "hello"}
    return sum(number for name, number in sent.items() if name not in within_scripts)
