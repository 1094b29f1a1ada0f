"""What of aiolimiter's leaky bucket is private. No other module touches such parts.

A contract test for each fails on the version that removes it.
"""

from __future__ import annotations

from aiolimiter import AsyncLimiter

__all__ = ["LeakyBucket"]


class LeakyBucket(AsyncLimiter):
    """aiolimiter's bucket, which can also say how long a wait would be and what is still owed."""

    __slots__ = ()

    def take(self) -> None:
        """What `acquire` does if it need not wait, without the cost of a coroutine."""
        self._level += 1

    @property
    def owed(self) -> float:
        """Seconds until all requests so far are paid for."""
        self._leak()
        return self._level / self._rate_per_sec

    def owe(self, seconds: float) -> None:
        """Begin with so many seconds' worth to be paid for."""
        self._leak()  # sets the time from which the level sinks to now
        self._level = seconds * self._rate_per_sec

    def change(self, max_rate: float, time_period: float) -> None:
        """Apply other limits, also to those that wait; a minute at most is owed."""
        self._leak()
        self.max_rate, self.time_period = max_rate, time_period
        self._rate_per_sec = max_rate / time_period
        self._level = min(self._level, max(max_rate, self._rate_per_sec * 60))
        self._wake_next()

    def wait(self, ahead: int) -> float:
        """Seconds until one more request fits, after `ahead` others."""
        self.has_capacity()  # brings the level up to date
        return max(self._level + ahead + 1 - self.max_rate, 0.0) / self._rate_per_sec
