"""What happens to a LightRAG, protected or not: each script runs once for each seed.

A script returns its figures, as JSON has them. Durations are seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

from lightrag_resilience.demo.corpus import facts
from lightrag_resilience.demo.experiments import ask_steadily
from lightrag_resilience.demo.measurements import ANSWERED, EMPTY, REFUSED, Queries, percentile
from lightrag_resilience.demo.rig import Rig, build_rig
from lightrag_resilience.testing import Fault

EVERY = 1.5  # seconds from one query to the next
LONGEST = 120.0  # seconds; queries that take longer are ended, and count as that long
BEFORE, DEAD = 3.0, 20.0  # seconds until a provider dies, and for which it is dead
AFTERWARDS = 13.5  # seconds for which queries go on then
KNOWN = facts(4)

Figures = dict[str, Any]


class Start:
    """The moment from which a script counts, which both processes share."""

    def __init__(self) -> None:
        self.prepared = asyncio.Event()
        self.go = asyncio.Event()

    async def wait(self) -> None:
        """All is prepared: wait until those that shall run at the same time are, too."""
        self.prepared.set()
        await self.go.wait()


async def brownout(faults: Sequence[Fault], *, protected: bool, seed: int, start: Start) -> Figures:
    """14 queries, one every 1.5 s, while a part of all calls fails; then all is well."""
    async with build_rig(protected=protected, seed=seed) as rig:
        queries = await begin(rig, faults, start)
        await at_most(LONGEST, ask_steadily(rig, queries, KNOWN, every=EVERY, until=14 * EVERY))
        return told(queries, asked=14) | {"calls": rig.provider.count()}


async def dead(
    make: Callable[..., Fault] | None, *, protected: bool, seed: int, start: Start, **options: Any
) -> Figures:
    """A query every 1.5 s, before, while and after each call meets a fault for 20 s.

    Args:
        make: Makes the fault, of `start` and `end`; None: nothing listens, connections are refused.
        protected: Whether the LightRAG is protected.
        seed: For whatever is drawn.
        start: When it begins.
        options: Of the LightRAG.
    """
    dies = BEFORE + EVERY * Random(seed).random()  # at another moment between two queries
    returns = dies + DEAD
    count = round((BEFORE + DEAD + AFTERWARDS) / EVERY)
    faults = [make(start=dies, end=returns)] if make else []
    async with build_rig(protected=protected, seed=seed, **options) as rig:
        queries = await begin(rig, faults, start)
        switching = None if make else asyncio.create_task(refuse_connections(rig, dies))
        await at_most(LONGEST, ask_steadily(rig, queries, KNOWN, every=EVERY, until=count * EVERY))
        if switching is not None:
            await switching
        answered = [one.at + one.took for one in queries.asked if one.outcome == ANSWERED]
        seen = [call.at for call in rig.provider.calls]
        return told(queries, asked=count) | {
            "first_answer": min((at - returns for at in answered if at > returns), default=LONGEST),
            "calls": len(seen),
            "calls_while_dead": None if make is None else sum(dies <= at < returns for at in seen),
        }


async def refuse_connections(rig: Rig, dies: float) -> None:
    """Let nothing listen at the provider's port for the time of the outage."""
    await asyncio.sleep(dies)
    await rig.provider.__aexit__()
    await asyncio.sleep(DEAD)
    await rig.provider.__aenter__()


# ---------------------------------------------------------------------- parts of scripts


async def begin(rig: Rig, faults: Sequence[Fault], start: Start) -> Queries:
    """Ingest what is asked about, then count time, calls and faults from now on."""
    await rig.ingest(KNOWN)
    await start.wait()
    queries = Queries()
    rig.provider.reset_calls()
    rig.provider.set_faults(faults)
    rig.provider.begin()
    queries.begin()
    return queries


def told(queries: Queries, *, asked: int) -> Figures:
    """How many queries were answered, and how long all of them took."""
    unfinished = asked - len(queries.asked)
    took = [one.took for one in queries.asked] + [LONGEST] * unfinished
    answered = [one.took for one in queries.asked if one.outcome == ANSWERED]
    return {
        "asked": asked,
        "answered": queries.count(ANSWERED),
        "empty": queries.count(EMPTY),
        "refused": queries.count(REFUSED),
        "unfinished": unfinished,
        "p50": percentile(took, 0.5),
        "p95": percentile(took, 0.95),
        "answered_p95": percentile(answered, 0.95),
        "queries": [
            [round(one.at, 2), round(one.took, 2), one.outcome]
            for one in sorted(queries.asked, key=lambda one: one.at)
        ],
    }


async def at_most(seconds: float, work: Awaitable[None]) -> None:
    """Run work for at most so many seconds; then cancel it without an error."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return
