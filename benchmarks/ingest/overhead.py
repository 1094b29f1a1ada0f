"""What protection costs an ingest with no fault: seconds, protected and not, in turns.

``python -m benchmarks.ingest.overhead [--rounds 10]``
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import time

from lightrag_resilience.demo.corpus import document, facts
from lightrag_resilience.demo.rig import build_rig

COUNT = 20


async def ingest(*, protected: bool, seed: int) -> float:
    """Seconds for twenty documents; the provider takes 20 ms for each answer."""
    async with build_rig(protected=protected, seed=seed) as rig:
        texts = [document(fact) for fact in facts(COUNT)]
        began = time.perf_counter()
        await rig.rag.ainsert(texts)
        took = time.perf_counter() - began
        assert await rig.documents_by_status() == {"processed": COUNT}  # noqa: S101 - or it is void
        return took


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of so many ingests each, bare and protected, in turns."""
    asyncio.run(ingest(protected=True, seed=0))  # imports, caches
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds):
        protected = number % 4 in {0, 3}  # as often first as second
        took[protected].append(asyncio.run(ingest(protected=protected, seed=1)))
    return {"bare": took[False], "protected": took[True]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    logging.disable(logging.CRITICAL)
    took = measure(rounds)
    bare, guarded = statistics.median(took["bare"]), statistics.median(took["protected"])
    print(f"{COUNT} documents, median of {rounds}: bare {bare:.3f} s, protected {guarded:.3f} s")
    print(f"fastest: bare {min(took['bare']):.3f} s, protected {min(took['protected']):.3f} s")
    print(f"protection costs {100 * (guarded / bare - 1):+.1f} % (median)")


if __name__ == "__main__":
    main()
