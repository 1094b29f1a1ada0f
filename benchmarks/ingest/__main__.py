"""Real LightRAGs ingest twenty documents while their provider fails over real HTTP.

``python -m benchmarks.ingest [--seeds 10] [--quick] [--unprotected 3]``
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from lightrag_resilience.demo.corpus import document, facts
from lightrag_resilience.demo.rig import Rig, build_rig
from lightrag_resilience.testing import Fault

COUNT = 20
LONGEST = 300.0  # seconds for one ingest


@dataclass(frozen=True)
class Scenario:
    """What the provider does; `after` calls it begins, and `lasts` so many seconds."""

    name: str
    share: float
    lasts: float | None
    after: int = 0


SCENARIOS = (
    Scenario("30 % of calls answer 500, all the time", 0.3, None),
    Scenario("60 % of calls answer 500, for 20 s", 0.6, 20.0),
    Scenario("everything dead for 60 s, in mid-ingest", 1.0, 60.0, after=20),
)


@dataclass(frozen=True)
class Result:
    processed: int
    failed: int
    seconds: float
    late: float | None
    """Seconds from the end of the outage to the last document."""


async def run(scenario: Scenario, seed: int, *, protected: bool, scale: float) -> Result:
    lasts = None if scenario.lasts is None else scenario.lasts * scale
    async with build_rig(protected=protected, seed=seed) as rig:
        outage = asyncio.create_task(happen(rig, scenario, lasts))
        began = time.monotonic()
        ingest = asyncio.create_task(rig.rag.ainsert([document(fact) for fact in facts(COUNT)]))
        await asyncio.wait([ingest], timeout=LONGEST)
        ended = await outage if lasts is not None else None
        if ended is None:
            outage.cancel()
        if protected:
            await until_all_are_processed(rig)
        done = time.monotonic()
        counts = await rig.documents_by_status()
        ingest.cancel()
        return Result(
            counts.get("processed", 0),
            counts.get("failed", 0),
            done - began,
            None if ended is None else max(done - ended, 0.0),
        )


async def happen(rig: Rig, scenario: Scenario, lasts: float | None) -> float:
    """Let the provider fail; the monotonic time at which it is well again."""
    while len(rig.provider.calls) < scenario.after:  # noqa: ASYNC110 - the provider publishes no event
        await asyncio.sleep(0.005)
    rig.provider.set_faults([Fault.status(500, share=scenario.share)])
    await asyncio.sleep(LONGEST if lasts is None else lasts)
    rig.provider.set_faults([])
    return time.monotonic()


async def until_all_are_processed(rig: Rig) -> None:
    """Wait as long as documents are resumed by themselves."""
    end = time.monotonic() + 60.0
    while time.monotonic() < end:
        if await rig.documents_by_status() == {"processed": COUNT}:
            return
        await asyncio.sleep(0.1)


def cells(results: Sequence[Result]) -> list[str]:
    if not results:
        return ["-", "-", "-"]
    lost = [COUNT - result.processed for result in results]
    late = [result.late for result in results if result.late is not None]
    return [
        f"{min(lost)} to {max(lost)} of {COUNT}",
        f"{min(r.seconds for r in results):.0f} to {max(r.seconds for r in results):.0f} s",
        f"at most {max(late):.1f} s" if late else "-",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--unprotected", type=int, default=3, help="seeds without protection")
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the time")
    asked = parser.parse_args()
    seeds, bare, scale = (1, 0, 0.1) if asked.quick else (asked.seeds, asked.unprotected, 1.0)
    logging.disable(logging.CRITICAL)
    table = Table(title=f"{COUNT} documents, {seeds} seeds protected, {bare} not")
    for title in ("provider", "", "documents lost", "ingest took", "processed after recovery"):
        table.add_column(title)
    for scenario in SCENARIOS:
        for protected, count in ((True, seeds), (False, bare)):
            results = [
                asyncio.run(run(scenario, seed, protected=protected, scale=scale))
                for seed in range(1, count + 1)
            ]
            table.add_row(scenario.name, "protected" if protected else "bare", *cells(results))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
