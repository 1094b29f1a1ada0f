"""Two hosts of one binding, of which one is dead."""

from __future__ import annotations

import asyncio

from benchmarks.never_worse.parts import KNOWN, LONGEST, Figures, Start, at_most, told
from lightrag_resilience.demo.corpus import facts
from lightrag_resilience.demo.experiments import ask_steadily
from lightrag_resilience.demo.measurements import Queries
from lightrag_resilience.demo.rig import build_rig
from lightrag_resilience.testing import Fault, Simulator

DEAD = 20.0  # seconds
EVERY = 1.0  # seconds from one query to the next
COUNT = 20
LATENCY = 0.02  # seconds


async def two_hosts(*, protected: bool, seed: int, start: Start) -> Figures:
    """Queries to one host, while the host of the extractions is dead and documents come in."""
    async with (
        Simulator(seed=seed, latency=LATENCY) as extracting,
        build_rig(protected=protected, seed=seed, hosts={"extract": extracting.base_url}) as rig,
    ):
        await rig.ingest(KNOWN)
        await start.wait()
        extracting.set_faults([Fault.status(503, end=DEAD)])
        extracting.begin()
        rig.provider.reset_calls()
        queries = Queries()
        ingest = asyncio.create_task(rig.ingest(facts(len(KNOWN) + 4)[len(KNOWN) :]))
        await at_most(LONGEST, ask_steadily(rig, queries, KNOWN, every=EVERY, until=COUNT * EVERY))
        chats = [call for call in rig.provider.calls if "chat" in call.path]
        ingest.cancel()
        return told(queries, asked=COUNT) | {
            "calls": len(chats),
            "calls_to_the_dead": extracting.count("503"),
        }
