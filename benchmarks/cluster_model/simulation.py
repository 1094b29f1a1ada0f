"""A cluster that is too large for this machine, event by event: one server's queue, many workers.

The server does one thing at a time, each for as long as it was measured to take. Workers poll once
a second, with a jitter of a fifth, and busy ones report ten times a second. In the middle one
worker trips: its report waits its turn, and then the message goes to all, one after the other.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

from .costs import Costs
from .model import BATCHES, HEARTBEATS, POLLS, load_of_a_worker

__all__ = ["Simulated", "simulate"]

_SECONDS = 4.0
_TRIP_AT = 3.0  # seconds
_SEED = 8
_NEVER_AGAIN = 0.0


@dataclass(frozen=True, slots=True)
class Simulated:
    """What one Redis had to do, and how fast a trip spread.

    Attributes:
        workers: How many there were; all share one breaker.
        busy: Whether all of them called, too.
        commands: A second, of all workers together.
        load: Share of a core that the server needs; above 1 it cannot keep up.
        waited: Seconds that the report of the trip waited for its turn.
        p50: Seconds until half of the workers had it, their own part included.
        last: Seconds until all had it.
    """

    workers: int
    busy: bool
    commands: float
    load: float
    waited: float
    p50: float
    last: float


def simulate(workers: int, costs: Costs, own_part: float, *, busy: bool) -> Simulated:
    """Four seconds of so many workers; `own_part` are a worker's seconds to send and to receive."""
    chance = random.Random(_SEED)
    arrivals = [(_TRIP_AT, costs.report + workers * costs.delivery, _NEVER_AGAIN)]
    for _ in range(workers):
        poll = costs.poll + HEARTBEATS * costs.heartbeat
        arrivals.append((chance.random() / POLLS, poll, 1 / POLLS))
        if busy:
            arrivals.append((chance.random() / BATCHES, costs.report, 1 / BATCHES))
    heapq.heapify(arrivals)
    free_at = waited = 0.0
    while arrivals[0][0] < _SECONDS:
        now, takes, every = heapq.heappop(arrivals)
        begins = max(now, free_at)
        free_at = begins + takes
        if every == _NEVER_AGAIN:
            waited = begins - now
        else:
            heapq.heappush(arrivals, (now + every * chance.uniform(0.8, 1.2), takes, every))
    commands, load = load_of_a_worker(costs, 1, busy=busy)
    until_sent = waited + costs.report + own_part
    return Simulated(
        workers=workers,
        busy=busy,
        commands=workers * commands,
        load=workers * load,
        waited=waited,
        p50=until_sent + costs.delivery * workers / 2,
        last=until_sent + costs.delivery * workers,
    )
