"""Whether Redis is there, and what the log says of it: a word at an outage's begin and end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from lightrag_resilience.redis_client.error_text import describe_redis_error

from .overrides import Overrides
from .shared_breaker import SharedBreaker
from .shared_rate_limiter import SharedRateLimiter

__all__ = ["ConnectionStatus", "SharedObjects"]

_log = logging.getLogger("lightrag_resilience")

_SETTLED = 1.0  # seconds after which a return of Redis is told
_MOST_COMPLAINTS = 20  # told in one outage


@dataclass(frozen=True, slots=True)
class SharedObjects:
    """What is shared, by name; others may add to it at any time.

    Attributes:
        breakers: The breakers.
        limits: The limits.
        overrides: Variables that have other values in all workers.
    """

    breakers: dict[str, SharedBreaker]
    limits: dict[str, SharedRateLimiter]
    overrides: Overrides


class ConnectionStatus:
    """What others may know of the connection to Redis.

    Args:
        clock: Monotonic seconds.
        places: Where Redis is, for the log.

    Attributes:
        is_up: Whether Redis takes what is sent.
        round_trip: Seconds to it and back.
        workers: How many there were when Redis was there last, this one included.
    """

    __slots__ = ("_clock", "_complaints", "_places", "_up_since", "is_up", "round_trip", "workers")

    def __init__(self, clock: Callable[[], float], places: str = "") -> None:
        self.is_up = False
        self.round_trip = 0.0
        self.workers = 1
        self._clock = clock
        self._places = places
        self._complaints: set[str] = set()
        """What was told in this outage: parts that fail in turns, each in its way, tell it once."""
        self._up_since = math.inf

    def mark_up(self) -> None:
        """Redis takes what is sent."""
        self.is_up = True
        self._up_since = self._clock()

    def tick(self) -> None:
        """It still does. Its return is told once it lasts: old connections may still break."""
        if self._complaints and self._clock() >= self._up_since + _SETTLED:
            self._complaints.clear()
            _log.warning("Redis is there again: breakers are shared")

    def mark_down(self, error: BaseException) -> bool:
        """Redis cannot be used. True if this outage has not shown it in this way before."""
        self.is_up = False
        complaint = describe_redis_error(error, self._places)
        if complaint in self._complaints or len(self._complaints) >= _MOST_COMPLAINTS:
            return False
        # One warning for one outage, whatever its many errors are.
        level = logging.INFO if self._complaints else logging.WARNING
        text = "Redis cannot be used, so breakers go on in each process alone: %s"
        _log.log(level, text, complaint)
        self._complaints.add(complaint)
        return True
