"""The experiments. Each runs the same script on an instance, protected or not."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightrag_resilience.testing import Fault

from . import figures
from .comparison import Figure
from .corpus import Fact, facts
from .measurements import Asked, Measured, Queries
from .rig import Rig, build_rig

__all__ = ["EXPERIMENTS", "FULL", "QUICK", "Experiment", "Progress", "Scale", "ask", "ask_steadily"]

_INGEST_TIMEOUT = 75.0  # seconds for an ingest: documents not done then count with their status
_BROWNOUT_EVERY, _OUTAGE_EVERY, _DEAD_EVERY = 1.5, 2.0, 6.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the experiments are.

    Attributes:
        documents: Documents to ingest.
        known: How many of them queries ask about.
        ingest_outage: Seconds for which the provider of an ingest is down.
        brownout: Seconds for which a share of the calls fails.
        outage: Seconds at which the outage begins and ends.
        afterwards: Seconds for which queries go on then.
        burst: Queries at once.
        old: Seconds after which an outage is no longer one that queries wait for; None if the
            experiment ends sooner.
    """

    documents: int
    known: int
    ingest_outage: float
    brownout: float
    outage: tuple[float, float]
    afterwards: float
    burst: int
    old: float | None


FULL = Scale(
    documents=20,
    known=4,
    ingest_outage=15.0,
    brownout=40.0,
    outage=(10.0, 30.0),
    afterwards=10.0,
    burst=20,
    old=63.0,
)
QUICK = Scale(
    documents=6,
    known=2,
    ingest_outage=4.0,
    brownout=6.0,
    outage=(2.0, 6.0),
    afterwards=8.0,
    burst=8,
    old=None,
)


@dataclass(slots=True)
class Progress:
    """What the live view shows while an experiment runs."""

    rig: Rig | None = None
    queries: Queries = field(default_factory=Queries)
    done: bool = False


@dataclass(frozen=True, slots=True)
class Experiment:
    """A script, and what it shows.

    Attributes:
        name: Its key in the results.
        title: What happens.
        script: Runs it.
        figures: What is compared.
        trouble: Seconds at which the trouble begins and ends, for the picture; None: not drawn.
    """

    name: str
    title: str
    script: Callable[[Rig, Progress, Scale], Coroutine[Any, Any, Measured]]
    figures: tuple[Figure[Measured], ...]
    trouble: Callable[[Scale], tuple[float, float]] | None = None

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


async def _ingest(rig: Rig, progress: Progress, scale: Scale) -> Measured:
    """Ingest into an outage that ends after a while."""
    del progress
    rig.provider.set_faults([Fault.status(503, end=scale.ingest_outage)])
    _begin(rig)
    await _within(_INGEST_TIMEOUT, rig.ingest(facts(scale.documents)))
    measured = Measured(documents=await rig.documents_by_status())
    measured.take_calls(rig.provider.calls)
    measured.take_outage(0.0, scale.ingest_outage)
    return measured


async def _outage(rig: Rig, progress: Progress, scale: Scale) -> Measured:
    """Answer queries while the provider goes down and returns."""
    start, end = scale.outage
    faults = [
        Fault.reset(start=start, end=start + 3),
        Fault.status(503, start=start + 3, end=end),
    ]
    measured = await _ask_through(
        rig, progress, scale, faults, every=_OUTAGE_EVERY, until=end + scale.afterwards
    )
    measured.take_outage(start, end)
    return measured


async def _brownout(rig: Rig, progress: Progress, scale: Scale) -> Measured:
    """Answer queries while 60 % of all calls fail."""
    faults = [Fault.status(500, share=0.6, end=scale.brownout)]
    return await _ask_through(
        rig, progress, scale, faults, every=_BROWNOUT_EVERY, until=scale.brownout
    )


async def _ask_through(  # noqa: PLR0913 - what a script has, and how it asks
    rig: Rig,
    progress: Progress,
    scale: Scale,
    faults: Sequence[Fault],
    *,
    every: float,
    until: float,
) -> Measured:
    queries = progress.queries
    known = facts(scale.known)
    await rig.ingest(known)
    rig.provider.set_faults(faults)
    _begin(rig)
    queries.begin()
    await ask_steadily(rig, queries, known, every=every, until=until)
    measured = Measured()
    measured.take_queries(queries)
    measured.take_calls(rig.provider.calls)
    return measured


async def _dead(rig: Rig, progress: Progress, scale: Scale) -> Measured:
    """Queries at once while every call fails; then one now and then, and one more at last."""
    queries = progress.queries
    known = facts(scale.known)
    await rig.ingest(known)
    rig.provider.set_faults([Fault.status(500)])
    _begin(rig)
    queries.begin()
    began = time.monotonic()
    await asyncio.gather(
        *(ask(rig, queries, known[number % scale.known], number) for number in range(scale.burst))
    )
    measured = Measured(documents=await rig.documents_by_status())
    measured.take_queries(queries)
    measured.take_calls(rig.provider.calls)
    if scale.old is not None:
        left = began + scale.old - time.monotonic()
        await ask_steadily(rig, queries, known, every=_DEAD_EVERY, until=left - _DEAD_EVERY)
        await asyncio.sleep(began + scale.old - time.monotonic())
        refused = await ask(rig, queries, known[0], scale.burst)
        measured.refusal, measured.refusal_retry_after = refused.took, refused.retry_after
    return measured


EXPERIMENTS = (
    Experiment("flaky", "ingest while 30 % of all calls fail", _flaky, figures.FLAKY),
    Experiment("ingest", "ingest while the provider is down", _ingest, figures.INGEST),
    Experiment(
        "brownout",
        "queries while 60 % of all calls fail",
        _brownout,
        figures.BROWNOUT,
        lambda scale: (0.0, scale.brownout),
    ),
    Experiment(
        "outage",
        "queries while the provider is down",
        _outage,
        figures.OUTAGE,
        lambda scale: scale.outage,
    ),
    Experiment("dead", "queries at once to a dead provider", _dead, figures.DEAD),
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
