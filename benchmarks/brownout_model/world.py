"""Queries, a dependency that fails for a while, and what became of them, in virtual time.

All policies meet the same queries at the same moments, and the n-th attempt of a query has the same
fate whichever policy makes it: they differ by what they do, not by luck.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lightrag_resilience.testing import VirtualTimeLoop

__all__ = ["TIMEOUT", "Call", "Cell", "Fault", "Policy", "Workers", "simulate"]

TIMEOUT = 30.0  # seconds of an attempt, as if LLM_TIMEOUT were 30
_ANSWER, _PROBE, _SLOW, _FAILURE = (0.5, 1.5), (0.1, 0.3), (8.0, 16.0), 0.1  # seconds of each
PROBE = "probe"
_BEFORE = 3.0  # seconds of healthy traffic before the fault
_LONGEST_AFTER = 100.0  # seconds in which an answer after the fault is waited for

Call = Callable[[], Awaitable[None]]


class UnavailableError(Exception):
    """What the dependency answers while it fails."""

    status_code = 503


@dataclass(frozen=True, slots=True)
class Fault:
    """A share of the attempts fails, hangs or is slow for so many seconds."""

    share: float
    seconds: float
    kind: Literal["errors", "hangs", "slow"] = "errors"


@dataclass(slots=True)
class Cell:
    """What became of all queries that were asked during the fault, in all runs."""

    runs: int = 0
    calls: int = 0  # of the whole run, probes among them
    answers: int = 0  # of the whole run
    trips: int = 0
    took: list[float] = field(default_factory=list)  # seconds of each answered query
    in_vain: list[float] = field(default_factory=list)  # seconds of each other one
    first: list[float] = field(default_factory=list)  # seconds from the return to an answer

    @property
    def answered(self) -> float:
        """Share of the queries asked during the fault."""
        return len(self.took) / (len(self.took) + len(self.in_vain))

    @property
    def figures(self) -> dict[str, float | None]:
        """What the table shows; None where there is nothing to measure."""
        shown = {
            "answered": self.answered,
            "p50": quantile(self.took, 0.5),
            "p95": quantile(self.took, 0.95),
            "in_vain": quantile(self.in_vain, 0.5),
            "calls": self.calls / self.answers if self.answers else None,
            "trips": self.trips / self.runs,
            "first": quantile(self.first, 0.5),
        }
        return {name: None if one is None else round(one, 3) for name, one in shown.items()}


def quantile(seconds: list[float], share: float) -> float | None:
    """None of no seconds."""
    return sorted(seconds)[int(share * (len(seconds) - 1) + 0.5)] if seconds else None


class Workers(Protocol):
    """How the workers of a service call the dependency."""

    trips: int

    async def ask(self, worker: int, call: Call) -> None:
        """One query of one worker; raises where it is not answered."""


Policy = Callable[[int, Call], Workers]
"""Makes so many workers; the call is what a background probe may send."""


@dataclass(slots=True)
class _Run:
    fault: Fault
    cell: Cell
    number: str
    starts: float = _BEFORE
    is_seen: bool = False  # whether a query was answered after the return

    @property
    def ends(self) -> float:
        return self.starts + self.fault.seconds

    def call(self, query: str) -> Call:
        """The attempts of one query, or those of the probe."""
        chance = random.Random(f"{self.number} {query}")

        async def attempt() -> None:
            clock = asyncio.get_running_loop().time
            began, luck = clock(), chance.random()
            takes = chance.uniform(*(_PROBE if query == PROBE else _ANSWER))
            self.cell.calls += 1
            if self.starts <= began < self.ends and luck < self.fault.share:
                if self.fault.kind == "errors":
                    await asyncio.sleep(_FAILURE)
                    raise UnavailableError
                takes = chance.uniform(*_SLOW) if self.fault.kind == "slow" else 10 * TIMEOUT
            await asyncio.sleep(takes)
            if began >= self.ends and not self.is_seen and query != PROBE:
                self.is_seen = True
                self.cell.first.append(clock() - self.ends)

        return attempt

    def arrivals(self, rate: float) -> Iterator[float]:
        """When queries come: by chance, and one at least during the fault."""
        chance = random.Random(f"{self.number} arrivals")
        at = chance.expovariate(rate)
        while at < self.starts:
            yield at
            at += chance.expovariate(rate)
        at = self.starts + chance.uniform(0.0, min(1 / rate, self.fault.seconds))
        while at < self.ends + _LONGEST_AFTER and not (at > self.ends and self.is_seen):
            yield at
            at += chance.expovariate(rate)

    async def query(self, workers: Workers, worker: int, call: Call) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await workers.ask(worker, call)
        except Exception:  # noqa: BLE001 - however it failed, it was not answered
            ended = self.cell.in_vain
        else:
            ended = self.cell.took
            self.cell.answers += 1
        if self.starts <= began < self.ends:
            ended.append(clock() - began)


async def _play(run: _Run, rate: float, policy: Policy, count: int) -> None:
    clock = asyncio.get_running_loop().time
    workers = policy(count, run.call(PROBE))
    async with asyncio.TaskGroup() as queries:
        for number, at in enumerate(run.arrivals(rate)):
            await asyncio.sleep(max(at - clock(), 0.0))
            call = run.call(str(number))
            queries.create_task(run.query(workers, number % count, call))
    run.cell.trips += workers.trips


def simulate(
    policy: Policy, fault: Fault, rate: float, *, workers: int = 1, queries: int = 200
) -> Cell:
    """Play the fault until about so many queries came during it, at most 50 times.

    Args:
        policy: Makes the workers.
        fault: What happens to the dependency.
        rate: Queries a second, of all workers together.
        workers: How many there are.
        queries: About how many to see.
    """
    cell = Cell(runs=min(math.ceil(queries / (rate * fault.seconds)), 50))
    for number in range(cell.runs):
        random.seed(number)  # of the jitter of backoffs and breaks
        run = _Run(fault, cell, str(number))
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(_play(run, rate, policy, workers))
    return cell
