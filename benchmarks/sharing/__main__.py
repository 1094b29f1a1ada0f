"""What sharing breakers and limits costs; `python -m benchmarks.sharing [--quick] [--json F]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.sharing import cost, limits, outages, speed
from benchmarks.sharing.scale import SharingScale

FULL = SharingScale(trips=100, rounds=20, calls=10_000, seconds=10, breakers=10_000, samples=41)
QUICK = SharingScale(trips=20, rounds=5, calls=10_000, seconds=2, breakers=10_000, samples=9)
SMOKE = SharingScale(trips=2, rounds=1, calls=500, seconds=0.5, breakers=100, samples=2)


def main() -> None:
    """Measure all, print the goals beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__)
    scales = parser.add_mutually_exclusive_group()
    scales.add_argument("--quick", dest="scale", action="store_const", const=QUICK)
    scales.add_argument("--smoke", dest="scale", action="store_const", const=SMOKE)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.set_defaults(scale=FULL)
    options = parser.parse_args()
    logging.disable()
    results = measure_all(options.scale)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(as_table(results))
    if options.json:
        options.json.write_text(json.dumps(as_json(results, options.scale), indent=2) + "\n")


def measure_all(scale: SharingScale) -> dict[str, Any]:
    """Every figure as JSON has it; durations are seconds, costs of calls microseconds."""
    sent, batches = speed.sent_for_closed_calls(scale.calls)
    asked, polls = speed.sent_for_open_calls(scale.calls)
    round_trips, calls = speed.round_trips(scale.seconds)
    results = {
        "propagation": speed.propagation(scale.trips),
        "probes": speed.probes(scale.rounds),
        "closed calls": {"calls": scale.calls, "scripts": sent, "batches": batches},
        "open calls": {"calls": scale.calls, "scripts": asked, "polls": polls},
        "round trips": {"per 1000 calls": round_trips, "calls": calls},
        "limits": {
            "requests": limits.request_accuracy(scale.seconds),
            "tokens": limits.token_accuracy(scale.seconds),
        },
        "outages": outages.outages(scale.seconds),
        "loop lag": outages.loop_lag(scale.seconds),
        "bytes": {"breakers": scale.breakers, "bytes": cost.bytes_of_breakers(scale.breakers)},
        "costs": asyncio.run(cost.call_costs(scale.samples, 1000)),
    }
    plain: dict[str, Any] = json.loads(json.dumps(results, default=asdict))
    return plain


def as_table(results: dict[str, Any]) -> Table:
    """What was measured beside what it shall be."""
    table = Table(title="Four processes share a breaker and limits through a real server")
    for heading in ("what", "measured", "goal"):
        table.add_column(heading, no_wrap=heading != "measured")
    for row in sharing_rows(results):
        table.add_row(*row)
    return table


def sharing_rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "trip to refusal in another process", _ms(results["propagation"]), "p99 ≤ 5 ms"
    probes = results["probes"]
    yield "probes let through, quota 3", f"{min(probes)} to {max(probes)} a round", "3"
    closed = results["closed calls"]
    beyond = max(closed["scripts"] - closed["batches"], 0)
    yield f"scripts for {closed['calls']:,} calls, beyond the batches", str(beyond), "0"
    refused = results["open calls"]
    beyond = max(refused["scripts"] - refused["polls"], 0)
    yield f"scripts for {refused['calls']:,} refusals, beyond the polls", str(beyond), "0"
    round_trips = results["round trips"]["per 1000 calls"]
    yield "commands for 1000 calls of 50 ms", f"{round_trips:.1f}", "≤ 30"
    for what, row in (
        ("requests", "200 requests a window of 2 s"),
        ("tokens", "100,000 tokens a second, lognormal use"),
    ):
        yield from _limit_rows(row, results["limits"][what])
    during = results["outages"]
    yield "an instant call while Redis is well", _ms(during["well"]), ""
    for kind in ("killed", "hung"):
        outage = during[kind]
        yield f"… while Redis is {kind}", _ms(outage["calls"]), "≤ 1 ms more"
        wrong = f"{outage['wrong']} failed, {outage['leaked']} passed an open breaker"
        yield f"… of {outage['calls']['samples']:,} calls", wrong, "0"
        yield "… all agree after its return within", f"{outage['agreed']:.2f} s", "≤ 2 s"
    for name, lag in results["loop lag"].items():
        yield (
            f"timers run late, 4 x 50 callers {name}",
            _ms(lag),
            "≤ 1 ms over bare" * (name != "bare"),
        )
    weight = results["bytes"]
    yield f"{weight['breakers']:,} breakers", f"{weight['bytes'] / 1e6:.1f} MB", "≤ 10 MB"
    for case, figures in results["costs"].items():
        shared, local = figures["ours, shared"], figures["ours"]
        text = f"{shared['median']:.2f} µs, unshared {local['median']:.2f} µs"
        yield f"a call above the bare one, {case}", text, ""


def _limit_rows(row: str, accuracy: dict[str, float]) -> Iterator[tuple[str, str, str]]:
    # How many round trips are good depends on what may go at once: a lot is a fifth of that.
    yield f"{row}: worst window", f"{accuracy['worst']:.3f} of the limit", "≤ 1.10"
    yield "… used of what might have been", f"{accuracy['used']:.1%}", "≥ 95 %"
    yield "… round trips for 1000 admitted", f"{accuracy['round_trips']:.0f}", ""


def _ms(figure: dict[str, float]) -> str:
    p50, p99, most = (f"{figure[part] * 1000:.2f}" for part in ("p50", "p99", "most"))
    return f"p50 {p50}, p99 {p99}, most {most} ms"


def as_json(results: dict[str, Any], scale: SharingScale) -> dict[str, Any]:
    """Durations in seconds, costs of calls in microseconds."""
    return {
        "machine": machine.describe(),
        "scale": asdict(scale),
        "results": results,
    }


if __name__ == "__main__":
    main()
