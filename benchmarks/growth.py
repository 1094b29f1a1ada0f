"""How cost grows with calls, with calls under way, with waiting callers and with dependencies.

Each curve is the processor time that so many take together, from one to a hundred thousand: nothing
may be worse than linear. The least of a few runs counts, as noise only adds.
"""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import process_time

from benchmarks.calls import answer
from benchmarks.measure import quietly
from benchmarks.stacks.ours import make_registry
from lightrag_resilience import ConcurrencyPolicy, Guard, Guards, LimitPolicy, Policy

__all__ = ["LINEAR", "Curve", "all_curves", "exponent"]

LINEAR = 1.25
"""The exponent from which a curve counts as worse than linear: a wide bound, for noise."""

_RUNS = 3
_MANY = 100_000  # of which one run is enough: it lasts long
_SETTLED = 100  # below it fixed costs rule
_WAITERS = 100_000  # as many as a queue may hold

_Measure = Callable[[int], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """What so many take.

    Attributes:
        what: Of what there are more and more.
        unit: Of `cost`.
        sizes: How many there were.
        costs: What each of them took, on the average.
    """

    what: str
    unit: str
    sizes: list[int]
    costs: list[float]

    @property
    def exponent(self) -> float:
        """Of the power of the number with which all together grow; 1 is linear."""
        together = [size * cost for size, cost in zip(self.sizes, self.costs, strict=True)]
        return exponent(self.sizes, together)


def exponent(sizes: Sequence[int], together: Sequence[float]) -> float:
    """The slope of a line through the points on logarithmic axes; small numbers do not count."""
    points = list(zip(sizes, together, strict=True))
    points = [point for point in points if point[0] >= _SETTLED] or points
    xs = [math.log(size) for size, _ in points]
    ys = [math.log(whole) for _, whole in points]
    if len(points) < 2:
        return 1.0
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((a - x) ** 2 for a in xs)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread


async def all_curves(largest: int) -> list[Curve]:
    """Every curve, up to so many."""
    sizes = [10**power for power in range(int(math.log10(largest)) + 1)]
    curves = [
        await _curve(what, sizes, measure)
        for what, measure in (
            ("calls, one after the other", _calls),
            ("calls under way at once", _under_way),
            ("callers waiting for one permit", _waiting_for_a_permit),
            ("callers waiting for a rate", _waiting_for_a_rate),
        )
    ]
    return [*curves, *await _of_dependencies(sizes), await _bytes_of_dependencies(sizes)]


async def _curve(what: str, sizes: Sequence[int], measure: _Measure) -> Curve:
    costs = []
    for size in sizes:
        runs = []
        for _ in range(1 if size >= _MANY else _RUNS):
            with quietly():
                runs.append(await measure(size))
        costs.append(min(runs) / size * 1e6)
    return Curve(what, "µs each", list(sizes), costs)


async def _of_dependencies(sizes: Sequence[int]) -> list[Curve]:
    """What it takes to make each and call it once, and to call it again among all the others."""
    made, called = [], []
    for size in sizes:
        with quietly():
            registry, policy = make_registry(), Policy.llm()
            began = process_time()
            for count in range(size):
                await registry.get(f"llm.growth.{count}", policy).call(answer, 1)
            made.append((process_time() - began) / size * 1e6)
            guards = list(registry)
            called.append(min([await _call_each(guards) for _ in range(_RUNS)]) / size * 1e6)
    return [
        Curve("dependencies, made and called", "µs each", list(sizes), made),
        Curve("calls, each of another dependency", "µs each", list(sizes), called),
    ]


async def _call_each(guards: Sequence[Guard]) -> float:
    began = process_time()
    for guard in guards:
        await guard.call(answer, 1)
    return process_time() - began


async def _calls(number: int) -> float:
    """Seconds for all of them."""
    guard = make_registry().get("llm.growth")
    await guard.call(answer, 1)
    began = process_time()
    for _ in range(number):
        await guard.call(answer, 1)
    return process_time() - began


async def _under_way(number: int) -> float:
    """All of them wait for the same moment."""
    guard = make_registry().get("llm.growth")
    opened = asyncio.Event()
    began = process_time()

    async def wait(_: int) -> int:
        await opened.wait()
        return 1

    tasks = [asyncio.create_task(guard.call(wait, 1)) for _ in range(number)]
    await asyncio.sleep(0)
    opened.set()
    await asyncio.gather(*tasks)
    return process_time() - began


async def _waiting_for_a_permit(number: int) -> float:
    """One goes at a time; each of them is done at once when its turn comes."""
    bulkhead = ConcurrencyPolicy(max_concurrent=1, max_queue=_WAITERS, max_wait=3600.0)
    return await _all_wait(make_registry(), Policy.llm(concurrency=bulkhead), number)


async def _waiting_for_a_rate(number: int) -> float:
    """All but one wait for a turn; turns come faster than they can be taken."""
    limit = LimitPolicy(rpm=10_000_000, burst=1, max_wait=3600.0)
    return await _all_wait(make_registry(), Policy.llm(limit=limit), number)


async def _all_wait(registry: Guards, policy: Policy, number: int) -> float:
    guard = registry.get("llm.growth", policy)

    async def briefly(_: int) -> int:
        await asyncio.sleep(0)
        return 1

    await guard.call(briefly, 1)
    began = process_time()
    await asyncio.gather(*(guard.call(briefly, 1) for _ in range(number)))
    return process_time() - began


async def _bytes_of_dependencies(sizes: Sequence[int]) -> Curve:
    costs = []
    for size in sizes:
        if size > 10_000:  # a trace of them would take a minute, and show nothing new
            break
        registry, policy = make_registry(), Policy.llm()
        await registry.get("llm.growth", policy).call(answer, 1)
        gc.collect()
        tracemalloc.start()
        for count in range(size):
            await registry.get(f"llm.growth.{count}", policy).call(answer, 1)
        gc.collect()
        costs.append(tracemalloc.get_traced_memory()[0] / size)
        tracemalloc.stop()
    return Curve("dependencies", "bytes each", list(sizes[: len(costs)]), costs)
