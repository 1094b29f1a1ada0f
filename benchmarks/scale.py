"""How much is measured: all of it, little for CI, next to nothing for the tests."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.sharing.scale import SharingScale

__all__ = ["FULL", "QUICK", "SMOKE", "Scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: Samples of each stack for the costs of a call.
        calls: Calls in a sample, and items of a stream.
        bursts: Samples of each stack for calls at once.
        at_once: Calls at once.
        dependencies: Dependencies whose memory is weighed together, at the most.
        imports: Fresh interpreters for each stack.
        largest: Calls, dependencies and callers up to which growth is followed.
        ingests: Real ingests, protected and not each; 0 leaves them out.
        workers: Simulated workers on a real Redis, ascending; none leaves them out.
        interpreters: Rounds over all versions of Python and event loops; 0 leaves them out.
        sharing: How much is measured of four processes that share; None leaves them out.
        peers: Whether the peers are measured too.
    """

    rounds: int
    calls: int
    bursts: int
    at_once: int
    dependencies: int
    imports: int
    largest: int
    ingests: int
    workers: tuple[int, ...]
    interpreters: int
    sharing: SharingScale | None
    peers: bool = True


FULL = Scale(
    rounds=25,
    calls=1000,
    bursts=4,
    at_once=10_000,
    dependencies=200,
    imports=7,
    largest=100_000,
    ingests=8,
    workers=(10, 50, 100, 200),
    interpreters=3,
    sharing=SharingScale(
        trips=100, rounds=10, calls=10_000, seconds=5, breakers=10_000, samples=21
    ),
)
QUICK = Scale(
    rounds=7,
    calls=300,
    bursts=1,
    at_once=2000,
    dependencies=20,
    imports=1,
    largest=1000,
    ingests=0,
    workers=(),
    interpreters=0,
    sharing=None,
)
SMOKE = Scale(
    rounds=2,
    calls=20,
    bursts=1,
    at_once=100,
    dependencies=5,
    imports=1,
    largest=100,
    ingests=0,
    workers=(),
    interpreters=0,
    sharing=None,
    peers=False,
)
