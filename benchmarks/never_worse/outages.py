"""Queries while a provider fails or is gone. Each script runs once for each seed.

A script returns its figures, as JSON has them. Durations are seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from benchmarks.never_worse.parts import (
    EVERY,
    KNOWN,
    LONGEST,
    Figures,
    Start,
    at_most,
    begin,
    told,
)
from lightrag_resilience.demo.experiments import ask, ask_steadily
from lightrag_resilience.demo.measurements import ANSWERED, Queries
from lightrag_resilience.demo.rig import Rig, build_rig
from lightrag_resilience.testing import Fault

BEFORE, DEAD = 3.0, 20.0  # seconds until a provider dies, and for which it is dead
AFTERWARDS = 13.5  # seconds for which queries go on then
OLD = 66.0  # seconds after which an outage is older than a minute, whoever counts from when
BURST = 20  # queries at once


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


async def old_outage(*, protected: bool, seed: int, start: Start) -> Figures:
    """Five queries to a provider that was dead for more than a minute, and was asked meanwhile."""
    async with build_rig(protected=protected, seed=seed) as rig:
        await begin(rig, [Fault.status(503)], start)
        await ask_steadily(rig, Queries(), KNOWN, every=3.0, until=OLD)
        queries = Queries()
        await ask_steadily(rig, queries, KNOWN, every=0.5, until=2.5)
        slowest = max(one.took for one in queries.asked)
        return told(queries, asked=5) | {"slowest": slowest, "calls": rig.provider.count()}


async def burst(*, protected: bool, seed: int, start: Start) -> Figures:
    """20 queries at once to a dead provider."""
    async with build_rig(protected=protected, seed=seed) as rig:
        queries = await begin(rig, [Fault.status(503)], start)
        await asyncio.gather(*(ask(rig, queries, KNOWN[n % len(KNOWN)], n) for n in range(BURST)))
        return told(queries, asked=BURST) | {"calls": rig.provider.count()}
