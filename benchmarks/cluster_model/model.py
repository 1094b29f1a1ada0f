"""The arithmetic: from what was measured to what a cluster of any size asks of one Redis.

A worker polls each breaker once a second, with a jitter of a fifth, and sends a heartbeat with
every third poll; it reports at most ten times a second for each breaker that has calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from .costs import Costs

__all__ = ["BATCHES", "FULL", "HEARTBEATS", "POLLS", "Capacity", "capacity", "load_of_a_worker"]

POLLS = 1.0  # a second, for each breaker
HEARTBEATS = 1 / 3  # a second
BATCHES = 10.0  # a second at the most, for each breaker that has calls
FULL = 0.7  # of one core: above it queues grow
_BREAKERS_OF_A_POLL = 256  # breakers
_COMMANDS_OF_A_HEARTBEAT = 3  # of itself, of the number of workers, of overrides


@dataclass(frozen=True, slots=True)
class Capacity:
    """Where one Redis ends.

    Attributes:
        breakers: That each worker shares.
        idle: Workers that it serves by 70 % of a core while none of them calls.
        busy: The same while each breaker of each worker has calls.
    """

    breakers: int
    idle: int
    busy: int


def load_of_a_worker(costs: Costs, breakers: int, *, busy: bool) -> tuple[float, float]:
    """Commands a second, and seconds of the server for them, each second."""
    polls = min(breakers, _BREAKERS_OF_A_POLL) * POLLS
    reports = breakers * BATCHES * busy
    commands = polls + HEARTBEATS * _COMMANDS_OF_A_HEARTBEAT + reports
    return commands, polls * costs.poll + HEARTBEATS * costs.heartbeat + reports * costs.report


def capacity(costs: Costs, breakers: int) -> Capacity:
    """How many workers one Redis can serve."""
    idle, busy = (load_of_a_worker(costs, breakers, busy=busy)[1] for busy in (False, True))
    return Capacity(breakers, int(FULL / idle), int(FULL / busy))
