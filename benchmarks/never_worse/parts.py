"""What the scripts share: when they begin, what they ask, what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from lightrag_resilience.demo.corpus import facts
from lightrag_resilience.demo.measurements import ANSWERED, EMPTY, REFUSED, Queries, percentile
from lightrag_resilience.demo.rig import Rig
from lightrag_resilience.testing import Fault

EVERY = 1.5  # seconds from one query to the next
LONGEST = 120.0  # seconds; queries that take longer are ended, and count as that long
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
