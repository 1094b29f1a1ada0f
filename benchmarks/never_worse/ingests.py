"""An ingest while a provider fails now and then."""

from __future__ import annotations

import asyncio
import time

from benchmarks.never_worse.parts import Figures, Start
from lightrag_resilience.demo.corpus import facts
from lightrag_resilience.demo.rig import Rig, build_rig
from lightrag_resilience.events import Event, StateChanged
from lightrag_resilience.testing import Fault

DOCUMENTS = 20
SHARE = 0.3  # of calls that fail
LONGEST = 200.0  # seconds
_POLL = 0.1  # seconds


async def flaky(*, protected: bool, seed: int, start: Start) -> Figures:
    """Ingest 20 documents while 30 % of all calls answer 500."""
    opened: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, StateChanged) and event.new == "open":
            opened.append(event.dependency)

    async with build_rig(protected=protected, seed=seed) as rig:
        if rig.guards is not None:
            rig.guards.events.subscribe(note, StateChanged)
        await start.wait()
        rig.provider.set_faults([Fault.status(500, share=SHARE)])
        rig.provider.begin()
        ingest = asyncio.create_task(rig.ingest(facts(DOCUMENTS)))
        processed_at, failed = await follow(rig, ingest)
        ingest.cancel()
        calls = rig.provider.count()
        return {
            "processed": len(processed_at),
            "failed": failed,
            "took": processed_at[-1] if processed_at else None,
            "opened": len(opened),
            "calls": calls,
            "calls_per_answer": calls / max(rig.provider.count("200"), 1),
            "processed_at": [round(at, 2) for at in processed_at],
        }


async def follow(rig: Rig, ingest: asyncio.Task[None]) -> tuple[list[float], int]:
    """When each document was processed, and how many failed for good."""
    began = time.monotonic()
    processed_at: list[float] = []
    while True:
        await asyncio.sleep(_POLL)
        counts = await rig.documents_by_status()
        now = time.monotonic() - began
        processed_at += [now] * (counts.get("processed", 0) - len(processed_at))
        # Unprotected, the end of the ingest is the end; protected, recovery may go on.
        is_over = ingest.done() and rig.guards is None
        if len(processed_at) == DOCUMENTS or is_over or now > LONGEST:
            return processed_at, DOCUMENTS - len(processed_at)
