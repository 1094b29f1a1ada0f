"""The goals of this project's design, beside what was measured, ours and the peers'.

A cost is judged by its lower quartile: a quarter of the samples were below. The machine is shared
with others, and noise only adds. The design has what pyresilience took where its goals were set.
Where it takes longer the machine is slower, and what counts is how many times less ours costs in
the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import BARE, COMPOSED, OURS
from benchmarks.footprint import BESIDE_OTEL

__all__ = ["EVERYTHING", "OBSERVED", "Goal", "goals"]

OBSERVED = "ours, with Prometheus"
EVERYTHING = "ours, everything, Redis"
_PEERS = {
    COMPOSED: "composed",
    "composed by hand, Redis": "composed, Redis",
    "hyx": "hyx",
    "pyresilience": "pyresilience",
    "stamina + aiobreaker, no timeout": "stamina + aiobreaker",
    "stamina + aiobreaker, Redis, no timeout": "aiobreaker, Redis",
    "interlock-cb pipeline": "interlock-cb",
    "interlock-cb pipeline, Redis": "interlock-cb, Redis",
    "baldur": "baldur",
}
_PEER = "pyresilience"  # the yardstick
_MILLI = 1e3

Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """One row.

    Attributes:
        what: Is measured.
        goal: In words; empty where there is none.
        ours: What was measured.
        is_met: Whether that is what it shall be; None where there is no goal.
        peers: What was measured of them in the same run.
    """

    what: str
    goal: str
    ours: str
    is_met: bool | None
    peers: str = ""


def goals(data: Data) -> Iterator[Goal]:
    """Every row of the design for which there are figures."""
    yield from _of_calls(data["cases"], data["scale"]["at_once"])
    yield from _of_sharing(data)
    yield from _of_footprint(data)


def _of_calls(cases: Data, at_once: int) -> Iterator[Goal]:
    happy, refused, failing = cases["happy"], cases["refused"], cases["failing"]
    for what, case, stack, limit, yardstick in (
        ("happy path over a bare call, with a deadline", happy, OURS, 1.5, 17.1),
        ("the same, with Prometheus", happy, OBSERVED, 2.5, 17.1),
        ("refused by an open breaker", refused, OURS, 0.8, 1.8),
        ("exception path, not retried", failing, OURS, 3.5, 21.0),
    ):
        if stack in case:
            cost = case[stack]["low"]
            measured = f"{cost:.2f} µs (median {case[stack]['median']:.2f})"
            goal, is_met = f"≤ {limit} µs", cost <= limit
            if _PEER in case and case[_PEER]["low"] > yardstick:
                asked, times = yardstick / limit, case[_PEER]["ratio"] / case[stack]["ratio"]
                goal += f", here {_PEER} ÷ {asked:.1f}"
                measured += f", {_PEER} ÷ {times:.1f}"
                is_met = times >= asked
            yield Goal(what, goal, measured, is_met, _peers(case, _in_microseconds))
    if EVERYTHING in happy:
        measured = _in_microseconds(happy[EVERYTHING])
        yield Goal("happy path, everything on and shared through Redis", "", f"{measured} µs", None)
    rates = cases["throughput"]
    share = rates[OURS]["high"] / rates[BARE]["high"]
    at_best = f"{rates[OURS]['high']:,.0f} calls/s, {share:.0%} of the bare"
    what = f"{at_once:,} concurrent calls of 50 ms"
    yield Goal(what, "≥ 73 % of the bare", at_best, share >= 0.73, _peers(rates, _a_second))


def _of_sharing(data: Data) -> Iterator[Goal]:
    shared = data.get("sharing")
    if not shared:
        return
    closed, refused = shared["closed calls"], shared["open calls"]
    beyond = max(closed["scripts"] - closed["batches"], 0)
    beyond += max(refused["scripts"] - refused["polls"], 0)
    each = [f"{_PEERS[name]} {n:.1f}" for name, n in data["commands"].items() if name in _PEERS]
    what = "Redis commands a closed or open call waits for"
    yield Goal(what, "0", str(beyond), beyond == 0, ", ".join(each))
    trips = shared["round trips"]["per 1000 calls"]
    what = "Redis commands per 1000 calls, 4 processes"
    thousands = [
        f"{_PEERS[name]} {n * 1000:,.0f}" for name, n in data["commands"].items() if name in _PEERS
    ]
    yield Goal(what, "≤ 30", f"{trips:.0f}", trips <= 30, ", ".join(thousands))
    late = shared["propagation"]
    measured = f"p50 {late['p50'] * _MILLI:.1f}, p99 {late['p99'] * _MILLI:.1f} ms"
    yield Goal("trip seen in another process", "p99 ≤ 5 ms", measured, late["p99"] <= 0.005)
    probes = shared["probes"]
    measured = f"{min(probes)} to {max(probes)} of 3"
    exact = set(probes) == {3}
    yield Goal("probes half-open, over all processes", "exactly the quota", measured, exact)


def _of_footprint(data: Data) -> Iterator[Goal]:
    if memory := data.get("memory"):
        yield _of_memory(memory)
    imports = data["cases"]["imports"]
    took, loaded = imports[OURS]["low"] * _MILLI, data["extras"]
    measured = f"{took:.0f} ms, " + (f"loads {', '.join(loaded)}" if loaded else "no extra loaded")
    if BESIDE_OTEL in imports:
        measured += (
            f" ({imports[BESIDE_OTEL]['low'] * _MILLI:.0f} where redis-py finds OpenTelemetry)"
        )
    is_met = took <= 150 and not loaded
    yield Goal("import", "≤ 150 ms, no extra", measured, is_met, _peers(imports, _milliseconds))


def _of_memory(memory: Data) -> Goal:
    size = memory[OURS]["median"]
    measured = f"{size:,.0f} bytes ({size + memory[BARE]['median']:,.0f} with the wrapper)"
    what = "memory per dependency, window of 100 included, above a bare wrapper"
    return Goal(what, "≤ 1024 bytes", measured, size <= 1024, _peers(memory, _bytes))


def _peers(case: Data, show: Callable[[Data], str]) -> str:
    return ", ".join(
        f"{short} {show(case[name])}" for name, short in _PEERS.items() if name in case
    )


def _in_microseconds(figure: Data) -> str:
    return f"{figure['low']:.1f}" if figure["low"] < 10 else f"{figure['low']:.0f}"


def _a_second(figure: Data) -> str:
    return f"{figure['high'] / 1000:.0f} k"


def _bytes(figure: Data) -> str:
    return f"{figure['median']:,.0f}"


def _milliseconds(figure: Data) -> str:
    return f"{figure['low'] * _MILLI:.0f}"
