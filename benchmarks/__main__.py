"""What a guarded call costs beside the peers, and everything else that costs.

``python -m benchmarks [--quick] [--page] [--json FILE] [--parts PART …] [--pythons PYTHON …]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, page, parts
from benchmarks.figures import COMPOSED, rounded
from benchmarks.growth import LINEAR
from benchmarks.report import print_all
from benchmarks.scale import FULL, QUICK, SMOKE, Scale
from benchmarks.stack import Stack
from benchmarks.stacks import find_stacks

_LEAST_ADVANTAGE = 2.0
_NOISE = 1.5  # a quick run looks at growth more kindly
_PARTS = ("calls", "memory", "sharing", "growth", "ingests", "interpreters", "cluster")


def main() -> int:
    """Check, measure, print. 1 where a quick run finds ours not clearly cheaper than by hand."""
    options = _options()
    logging.disable(logging.CRITICAL)  # peers log the retries that the checks cause
    console = Console(width=None if sys.stdout.isatty() else 150)
    data = _measured(console, options)
    print_all(console, data)
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return 1 if options.scale is QUICK and _is_too_dear(console, data) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(scale=FULL)
    scales = parser.add_mutually_exclusive_group()
    scales.add_argument(
        "--quick",
        dest="scale",
        action="store_const",
        const=QUICK,
        help="fewer samples; fails where ours is not at least twice as cheap as the composed stack",
    )
    scales.add_argument(
        "--smoke", dest="scale", action="store_const", const=SMOKE, help="only see that it runs"
    )
    parser.add_argument("--page", action="store_true", help="write the pages in docs/, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--parts", nargs="+", choices=_PARTS, default=_PARTS, help="what to measure; all by default"
    )
    parser.add_argument(
        "--pythons", nargs="+", default=[], metavar="PYTHON", help="interpreters to compare"
    )
    return parser.parse_args()


def _measured(console: Console, options: argparse.Namespace) -> dict[str, Any]:
    scale: Scale = options.scale
    measures: dict[str, Callable[[], Any]] = {
        "calls": lambda: asyncio.run(parts.calls(_stacks(console, scale), scale)),
        "memory": lambda: asyncio.run(parts.memory(_stacks(console, scale), scale)),
        "sharing": lambda: parts.sharing(scale),
        "growth": lambda: parts.growing(scale),
        "ingests": lambda: parts.ingests(scale),
        "interpreters": lambda: parts.on_interpreters(scale, options.pythons),
        "cluster": lambda: parts.cluster(scale),
    }
    data: dict[str, Any] = {"machine": machine.describe(), "scale": asdict(scale)}
    began = time.monotonic()
    for name in options.parts:
        figures = rounded(measures[name]())
        data |= figures if name == "calls" else {name: figures}
        if options.page:
            page.renew(data)  # part by part: what is measured is not lost
        console.print(f"[dim]{name}: done after {time.monotonic() - began:.0f} s")
        console.file.flush()  # a reader of the file sees each row at once
    return data


def _stacks(console: Console, scale: Scale) -> list[Stack]:
    stacks, missing = find_stacks("all" if scale.peers else "plain")
    for module in missing:
        console.print(f"{module} is not installed and left out; 'make bench' brings it")
    return stacks


def _is_too_dear(console: Console, data: dict[str, Any]) -> bool:
    """Bounds that only a mistake breaks, however busy the machine is."""
    wrong = []
    for case in ("happy", "refused", "failing") if "cases" in data else ():
        advantage = data["cases"][case][COMPOSED]["ratio"]
        if advantage < _LEAST_ADVANTAGE:
            wrong.append(f"{case}: the composed stack costs only {advantage:.1f} times ours")
    wrong += [
        f"{curve['what']}: costs grow by the power of {curve['exponent']:.2f}"
        for curve in data.get("growth", ())
        if curve["exponent"] > LINEAR * _NOISE
    ]
    if data.get("extras"):
        wrong.append(f"the import loads {', '.join(data['extras'])}")
    for line in wrong:
        console.print(f"[red]{line}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
