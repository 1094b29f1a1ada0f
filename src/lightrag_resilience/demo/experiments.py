"""The three experiments. Each runs the same script on an instance, protected or not."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightrag_resilience.testing import Fault

from .corpus import Fact, facts
from .measurements import ANSWERED, Asked, Measured, Queries
from .rig import Rig, build_rig

__all__ = ["EXPERIMENTS", "FULL", "QUICK", "Experiment", "Progress", "Scale", "ask", "ask_steadily"]

_INGEST_TIMEOUT = 75.0  # seconds for an ingest: documents not done then count with their status
_QUERY_EVERY = 1.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the experiments are.

    Attributes:
        documents: Documents to ingest.
        known: How many of them queries ask about.
        burst: Queries at once.
        outage: Seconds at which the outage begins and ends.
        afterwards: Seconds for which queries go on then.
    """

    documents: int
    known: int
    burst: int
    outage: tuple[float, float]
    afterwards: float


FULL = Scale(documents=20, known=4, burst=20, outage=(5.0, 25.0), afterwards=15.0)
QUICK = Scale(documents=6, known=2, burst=4, outage=(2.0, 6.0), afterwards=8.0)


@dataclass(slots=True)
class Progress:
    """What the live view shows while an experiment runs."""

    rig: Rig | None = None
    queries: Queries = field(default_factory=Queries)
    done: bool = False


@dataclass(frozen=True, slots=True)
class Experiment:
    """A script, and what it shows."""

    name: str
    title: str
    script: Callable[[Rig, Progress, Scale], Coroutine[Any, Any, Measured]]

    async def run(
        self, *, protected: bool, seed: int, scale: Scale, progress: Progress
    ) -> Measured:
        """Run the script on a fresh instance."""
        async with build_rig(protected=protected, seed=seed) as rig:
            progress.rig = rig
            started = time.monotonic()
            measured = await self.script(rig, progress, scale)
            measured.took = time.monotonic() - started
            progress.rig, progress.done = None, True
            return measured


async def _flaky(rig: Rig, progress: Progress, scale: Scale) -> Measured:
    """Ingest while 30 % of all calls answer 500."""
    del progress
    rig.provider.set_faults([Fault.status(500, share=0.3)])
    _begin(rig)
    await _within(_INGEST_TIMEOUT, rig.ingest(facts(scale.documents)))
    measured = Measured(documents=await rig.documents_by_status())
    measured.take_calls(rig.provider.calls)
    return measured


async def _outage(rig: Rig, progress: Progress, scale: Scale) -> Measured:
    """Ingest and answer queries while the provider goes down and returns."""
    queries = progress.queries
    known, rest = facts(scale.documents)[: scale.known], facts(scale.documents)[scale.known :]
    await rig.ingest(known)
    start, end = scale.outage
    rig.provider.set_faults(
        [
            Fault.reset(start=start, end=start + 3),
            Fault.status(503, start=start + 3, end=end),
            Fault.throttle(retry_after=1, share=0.3, start=end, end=end + 2),
        ]
    )
    _begin(rig)
    queries.begin()
    asking = asyncio.create_task(
        ask_steadily(rig, queries, known, every=_QUERY_EVERY, until=end + scale.afterwards)
    )
    try:
        await asyncio.sleep(start - 1)
        await _within(_INGEST_TIMEOUT, rig.ingest(rest))
        await asking
    finally:
        asking.cancel()
    measured = Measured(documents=await rig.documents_by_status())
    measured.take_queries(queries)
    measured.take_calls(rig.provider.calls)
    answered = [asked.at + asked.took for asked in queries.asked if asked.outcome == ANSWERED]
    measured.recovery = min((at - end for at in answered if at > end), default=None)
    return measured


async def _dead(rig: Rig, progress: Progress, scale: Scale) -> Measured:
    """Queries at once while every call fails, then one more."""
    queries = progress.queries
    known = facts(scale.known)
    await rig.ingest(known)
    rig.provider.set_faults([Fault.status(500)])
    _begin(rig)
    queries.begin()
    await asyncio.gather(
        *(ask(rig, queries, known[number % scale.known], number) for number in range(scale.burst))
    )
    measured = Measured(documents=await rig.documents_by_status())
    measured.take_queries(queries)
    measured.take_calls(rig.provider.calls)
    refused = await ask(rig, queries, known[0], scale.burst)
    measured.refusal, measured.refusal_retry_after = refused.took, refused.retry_after
    return measured


EXPERIMENTS = (
    Experiment("flaky", "30 % of all calls answer 500", _flaky),
    Experiment("outage", "the provider is down", _outage),
    Experiment("dead", "queries at once, every call fails", _dead),
)


def _begin(rig: Rig) -> None:
    rig.provider.reset_calls()
    rig.provider.begin()


async def ask(rig: Rig, queries: Queries, fact: Fact, number: int) -> Asked:
    """Ask one question of its own about a town."""
    return await queries.ask(lambda: rig.ask(fact.question(number)), fact.founder)


async def ask_steadily(
    rig: Rig, queries: Queries, known: Sequence[Fact], *, every: float, until: float
) -> None:
    """One query every so many seconds, each in a task of its own, as users ask.

    Args:
        rig: What to ask.
        queries: Notes how each query ends.
        known: What to ask about, in turns.
        every: Seconds from one query to the next.
        until: Seconds after which no more are asked; those under way end first.
    """
    now = asyncio.get_running_loop().time
    began = now()
    async with asyncio.TaskGroup() as group:
        for number in itertools.takewhile(lambda number: number * every < until, itertools.count()):
            await asyncio.sleep(began + number * every - now())
            group.create_task(ask(rig, queries, known[number % len(known)], number))


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Run work for at most `seconds`; then cancel it without an error."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return
