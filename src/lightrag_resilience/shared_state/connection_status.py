"""Whether Redis is available; logs the begin and the end of each outage, once."""

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

_STABLE_FOR = 1.0  # seconds that Redis must be up before the log says so
_MAX_LOGGED = 20  # different errors in one outage


@dataclass(frozen=True, slots=True)
class SharedObjects:
    """All shared objects of this process, by name. Other threads may add to it at any time.

    Attributes:
        breakers: The breakers.
        limits: The rate limiters.
        overrides: Settings that operators changed for all workers.
    """

    breakers: dict[str, SharedBreaker]
    limits: dict[str, SharedRateLimiter]
    overrides: Overrides


class ConnectionStatus:
    """The state of the connection to Redis. The sync thread writes it, all threads read it.

    Args:
        clock: Monotonic seconds.
        address: Host and port of Redis, for the log.

    Attributes:
        is_up: Whether Redis accepts commands.
        round_trip: Seconds.
        workers: The last known number of workers, this one included.
    """

    __slots__ = ("_address", "_clock", "_logged", "_up_since", "is_up", "round_trip", "workers")

    def __init__(self, clock: Callable[[], float], address: str = "") -> None:
        self.is_up = False
        self.round_trip = 0.0
        self.workers = 1
        self._clock = clock
        self._address = address
        self._logged: set[str] = set()
        """Errors logged in this outage: several tasks fail in turn, with different errors."""
        self._up_since = math.inf

    def mark_up(self) -> None:
        """Redis accepts commands."""
        self.is_up = True
        self._up_since = self._clock()

    def tick(self) -> None:
        """Redis still accepts commands. Logs its return once that is stable."""
        if self._logged and self._clock() >= self._up_since + _STABLE_FOR:
            self._logged.clear()
            _log.warning("Redis is available again: breakers are shared")

    def mark_down(self, error: BaseException) -> bool:
        """Redis cannot be used. True if the error is new in this outage."""
        self.is_up = False
        description = describe_redis_error(error, self._address)
        if description in self._logged or len(self._logged) >= _MAX_LOGGED:
            return False
        # One warning an outage; its further errors are only for a closer reading.
        level = logging.INFO if self._logged else logging.WARNING
        text = "Redis cannot be used, so each process goes on with its own breakers: %s"
        _log.log(level, text, description)
        self._logged.add(description)
        return True
