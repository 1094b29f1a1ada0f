"""What a stack takes of memory for each dependency, and of time to import."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence

from benchmarks.calls import answer
from benchmarks.measure import Samples
from benchmarks.stack import Setup, Stack

__all__ = ["import_times", "memory"]

_TIMED_IMPORT = "from time import perf_counter as t; a = t(); import {}; print(t() - a)"


async def memory(stacks: Sequence[Stack], dependencies: int) -> Samples:
    """Bytes for one dependency: the protected function, and a breaker whose window is full."""
    return {stack.name: [await _bytes(stack, dependencies)] for stack in stacks}


async def _bytes(stack: Stack, dependencies: int) -> float:
    await stack.protect(answer, Setup())(1)  # what all of them share is there
    gc.collect()
    tracemalloc.start()
    try:
        kept = []
        for _ in range(dependencies):
            call = stack.protect(answer, Setup())
            for _ in range(stack.window):
                await call(1)
            kept.append(call)
            await asyncio.sleep(0)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(kept)
    finally:
        tracemalloc.stop()


def import_times(stacks: Sequence[Stack], rounds: int) -> Samples:
    """Seconds of an import in a fresh interpreter; of asyncio, which all of them import."""
    samples: Samples = {stack.name: [] for stack in stacks if stack.imports}
    order = [stack for stack in stacks if stack.imports]
    for _ in range(rounds):
        random.shuffle(order)
        for stack in order:
            samples[stack.name].append(_import_time(stack.imports))
    return samples


def _import_time(modules: str) -> float:
    command = [sys.executable, "-c", _TIMED_IMPORT.format(modules)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return float(printed)
