"""The parts of a whole run. Each gives figures as JSON has them, in their own units."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import cluster_model, footprint, growth, interpreters, measure, streams
from benchmarks.checks import check
from benchmarks.figures import Figure, as_they_are, costs
from benchmarks.ingest import overhead
from benchmarks.scale import Scale
from benchmarks.server import redis_url
from benchmarks.sharing.__main__ import measure_all
from benchmarks.stack import Stack

__all__ = ["calls", "cluster", "growing", "ingests", "memory", "on_interpreters", "sharing"]

Cases = dict[str, dict[str, Figure]]


async def calls(stacks: Sequence[Stack], scale: Scale) -> dict[str, Any]:
    """What a call costs in every case, in microseconds above the bare one; after checking all."""
    try:
        for stack in stacks:
            await check(stack)
        cases = await _cases(stacks, scale)
        shared = await footprint.commands(stacks, scale.calls, redis_url())
    finally:
        for stack in stacks:
            stack.close()
    return {
        "cases": {
            case: {stack: asdict(figure) for stack, figure in figures.items()}
            for case, figures in cases.items()
        },
        "commands": shared,
        "extras": footprint.extras_loaded(),
    }


async def _cases(stacks: Sequence[Stack], scale: Scale) -> Cases:
    rounds, number = scale.rounds, scale.calls
    cases = {
        "happy": costs(await measure.happy(stacks, rounds, number)),
        "refused": costs(await measure.refused(stacks, rounds, number)),
        "failing": costs(await measure.failing(stacks, rounds, number)),
        "retried": costs(await measure.retried(stacks, rounds, number)),
        "throughput": as_they_are(await measure.throughput(stacks, scale.bursts, scale.at_once)),
        "items of text": costs(await streams.per_item(streams.text(number), rounds)),
    }
    if (chunks := streams.items_of_model(number)) is not None:
        cases["items of a model"] = costs(await streams.per_item(chunks, rounds))
    cases["imports"] = as_they_are(footprint.import_times(stacks, scale.imports))
    return cases


async def memory(stacks: Sequence[Stack], scale: Scale) -> dict[str, Any]:
    """Bytes of a dependency, for each stack."""
    try:
        weighed = await footprint.memory(stacks, scale.dependencies)
    finally:
        for stack in stacks:
            stack.close()
    return {stack: asdict(figure) for stack, figure in as_they_are(weighed).items()}


def sharing(scale: Scale) -> dict[str, Any]:
    """Four processes that share; durations in seconds."""
    return measure_all(scale.sharing) if scale.sharing else {}


def growing(scale: Scale) -> list[dict[str, Any]]:
    """How cost grows, each curve with its exponent."""
    curves = asyncio.run(growth.all_curves(scale.largest))
    return [{**asdict(curve), "exponent": curve.exponent} for curve in curves]


def ingests(scale: Scale) -> dict[str, list[float]]:
    """Seconds of a real LightRAG's ingests with no fault, bare and protected."""
    return overhead.measure(scale.ingests) if scale.ingests else {}


def on_interpreters(scale: Scale, pythons: Sequence[str]) -> dict[str, Any]:
    """The costs of a call on each version of Python, under asyncio and uvloop."""
    return interpreters.measure(pythons, scale.interpreters) if scale.interpreters else {}


def cluster(scale: Scale) -> dict[str, Any]:
    """What workers cost one Redis, and what follows for ten thousand."""
    if not scale.workers:
        return {}
    return cluster_model.measure(scale.workers, seconds=4.0, commands=scale.calls // 10)
