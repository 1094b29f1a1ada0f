"""How much is measured of processes that share."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SharingScale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingScale:
    """How much is measured.

    Attributes:
        trips: Trips that spread.
        rounds: Times that a cluster probes.
        calls: Calls in a closed circuit, and in an open one.
        seconds: For each measurement that runs for a while.
        breakers: Breakers that are weighed.
        samples: Of the cost of a call.
    """

    trips: int
    rounds: int
    calls: int
    seconds: float
    breakers: int
    samples: int
