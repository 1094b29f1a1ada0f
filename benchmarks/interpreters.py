"""The costs of a call on several versions of Python, under asyncio's loop and under uvloop.

Every sample is a process of its own, and all versions and loops take turns in a new order each
round. ``python -m benchmarks.interpreters --one uvloop`` is such a sample.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure as loops
from benchmarks.figures import BARE, COMPOSED, OURS, Figure, costs
from benchmarks.stack import Stack
from benchmarks.stacks import find_stacks

__all__ = ["LOOPS", "measure", "merged", "sample"]

LOOPS = ("asyncio", "uvloop")
_NOT_HERE = 3  # the exit code where a loop is not installed
_LONGEST = 120.0  # seconds for one sample
_ROUNDS, _CALLS, _AT_ONCE = 7, 1000, 10_000
_NAMES = (BARE, OURS, "ours, with Prometheus", COMPOSED)

Sample = dict[str, dict[str, Any]]
"""By case, then by stack: a figure of `costs`, or calls a second."""


def measure(pythons: Sequence[str], rounds: int) -> dict[str, Any]:
    """For each version and loop that is here, the median of its samples' figures."""
    samples: dict[str, list[Sample]] = {}
    pairs = list(product(pythons or [sys.executable], LOOPS))
    for _ in range(rounds):
        for python, loop in random.sample(pairs, len(pairs)):
            measured = _sample_of(python, loop)
            if measured is None:
                pairs.remove((python, loop))
                continue
            samples.setdefault(f"{measured['python']}, {loop}", []).append(measured["cases"])
    return {name: merged(samples[name]) for name in sorted(samples)}


def _sample_of(python: str, loop: str) -> dict[str, Any] | None:
    """None where it cannot be had: no such loop is installed there."""
    command = [python, "-m", "benchmarks.interpreters", "--one", loop]
    root = Path(__file__).parents[1]
    done = subprocess.run(  # noqa: S603 - the interpreters that we were given
        command, cwd=root, capture_output=True, text=True, timeout=_LONGEST, check=False
    )
    if done.returncode == _NOT_HERE:
        return None
    if done.returncode:
        raise RuntimeError(f"A sample on {python} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def merged(samples: Sequence[Sample]) -> Sample:
    """One for all: medians of their figures, and the least of all."""
    together: Sample = {}
    for case, stack in product(samples[0], _NAMES):
        found = [sample[case][stack] for sample in samples if stack in sample[case]]
        if found:
            whole = {key: median(one[key] for one in found) for key in found[0]}
            whole["least"] = min(one["least"] for one in found)
            together.setdefault(case, {})[stack] = whole
    return together


async def sample(stacks: Sequence[Stack], rounds: int, calls: int, at_once: int) -> Sample:
    """The figures of one process."""
    cases: dict[str, dict[str, Figure]] = {
        "happy": costs(await loops.happy(stacks, rounds, calls)),
        "refused": costs(await loops.refused(stacks, rounds, calls)),
        "failing": costs(await loops.failing(stacks, rounds, calls)),
    }
    rates = await loops.throughput(stacks, 1, at_once)
    measured: Sample = {
        case: {stack: asdict(figure) for stack, figure in figures.items()}
        for case, figures in cases.items()
    }
    measured["throughput"] = {
        stack: {"median": median(values), "least": min(values)} for stack, values in rates.items()
    }
    return measured


def _runner(loop: str) -> Callable[[Any], Any]:
    if loop == "asyncio":
        return asyncio.run
    try:
        import uvloop  # noqa: PLC0415 - where it is wanted
    except ModuleNotFoundError:
        sys.exit(_NOT_HERE)
    run: Callable[[Any], Any] = uvloop.run
    return run


def main() -> None:
    """Take one sample in this process, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interpreters", description=__doc__)
    parser.add_argument("--one", choices=LOOPS, required=True)
    run = _runner(parser.parse_args().one)
    logging.disable(logging.WARNING)
    stacks = [stack for stack in find_stacks("ours")[0] if stack.name in _NAMES]
    cases = run(sample(stacks, _ROUNDS, _CALLS, _AT_ONCE))
    print(json.dumps({"python": platform.python_version(), "cases": cases}))


if __name__ == "__main__":
    main()
