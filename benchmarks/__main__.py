"""What a guarded call costs beside the peers: ``python -m benchmarks [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import footprint, measure
from benchmarks.checks import check
from benchmarks.figures import COMPOSED, as_they_are, costs
from benchmarks.report import Results, print_tables, write_json
from benchmarks.stack import Stack
from benchmarks.stacks import find_stacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: Samples of each stack for the costs of a call.
        calls: Calls in a sample.
        bursts: Samples of each stack for calls at once.
        at_once: Calls at once.
        dependencies: Dependencies whose memory is weighed together.
        imports: Fresh interpreters for each stack.
        peers: Whether the peers are measured too.
    """

    rounds: int
    calls: int
    bursts: int
    at_once: int
    dependencies: int
    imports: int
    peers: bool = True


FULL = Scale(rounds=41, calls=1000, bursts=7, at_once=10_000, dependencies=1000, imports=7)
QUICK = Scale(rounds=9, calls=300, bursts=1, at_once=10_000, dependencies=200, imports=1)
SMOKE = Scale(rounds=2, calls=20, bursts=1, at_once=100, dependencies=5, imports=1, peers=False)

_LEAST_ADVANTAGE = 2.0


def main() -> int:
    """Check, measure, print. 1 where a quick run finds ours not clearly cheaper than by hand."""
    options = _options()
    logging.disable(logging.WARNING)  # peers log the retries that the checks cause
    console = Console(width=None if sys.stdout.isatty() else 130)
    stacks, missing = find_stacks(peers=options.scale.peers)
    for module in missing:
        console.print(f"{module} is not installed and left out; 'make bench' brings it")
    results = asyncio.run(_measure(stacks, options.scale))
    print_tables(console, results, options.scale.at_once)
    if options.json:
        write_json(options.json, results, asdict(options.scale))
    return 1 if options.scale is QUICK and _is_too_dear(console, results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(scale=FULL)
    parser.add_argument(
        "--quick",
        dest="scale",
        action="store_const",
        const=QUICK,
        help="fewer samples; fails where ours is not at least twice as cheap as the composed stack",
    )
    parser.add_argument(
        "--smoke", dest="scale", action="store_const", const=SMOKE, help="only see that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


async def _measure(stacks: Sequence[Stack], scale: Scale) -> Results:
    for stack in stacks:
        await check(stack)
    protected = [stack for stack in stacks if stack.refusal]
    return {
        "happy": costs(await measure.happy(stacks, scale.rounds, scale.calls)),
        "refused": costs(await measure.refused(stacks, scale.rounds, scale.calls)),
        "failing": costs(await measure.failing(stacks, scale.rounds, scale.calls)),
        "throughput": as_they_are(await measure.throughput(stacks, scale.bursts, scale.at_once)),
        "memory": as_they_are(await footprint.memory(protected, scale.dependencies)),
        "imports": as_they_are(footprint.import_times(stacks, scale.imports)),
    }


def _is_too_dear(console: Console, results: Results) -> bool:
    advantages = {case: results[case][COMPOSED].ratio for case in ("happy", "refused")}
    for case, advantage in advantages.items():
        if advantage < _LEAST_ADVANTAGE:
            console.print(f"[red]{case}: the composed stack costs only {advantage:.1f} times ours")
    return min(advantages.values()) < _LEAST_ADVANTAGE


if __name__ == "__main__":
    sys.exit(main())
