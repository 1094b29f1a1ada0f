"""How many requests a minute: aiolimiter's leaky bucket, with an end to waiting."""

from __future__ import annotations

import asyncio

from aiolimiter import AsyncLimiter

from .errors import RateLimitedError
from .policy import LimitPolicy

__all__ = ["RateLimit"]


class RateLimit:
    """Smooths the requests of one dependency on one event loop, first come first served.

    Args:
        name: The dependency.
        policy: A policy whose `rpm` is set.
    """

    def __init__(self, name: str, policy: LimitPolicy) -> None:
        rpm = policy.rpm or 0.0
        burst = policy.burst or max(1.0, rpm // 10)
        self._name = name
        self._max_wait = policy.max_wait
        self._interval = 60.0 / rpm
        self._bucket = _Bucket(burst, time_period=burst * self._interval)
        self._line = asyncio.Lock()  # alone, the bucket lets who comes overtake who just woke up
        self._waiting = 0

    async def acquire(self, longest: float) -> bool:
        """Wait for a turn, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: The turn would come later than that, or than the policy allows.
        """
        wait = self._bucket.wait() + self._waiting * self._interval
        if not wait:
            await self._bucket.acquire()
            return False
        if wait > min(self._max_wait, longest):
            reason = f"with {self._waiting} calls waiting"
            raise RateLimitedError(self._name, wait, reason)
        self._waiting += 1
        try:
            async with self._line:
                await self._bucket.acquire()
        finally:
            self._waiting -= 1
        return True


class _Bucket(AsyncLimiter):
    __slots__ = ()

    def wait(self) -> float:
        """Seconds until one more request fits in."""
        if self.has_capacity():
            return 0.0
        return (self._level + 1 - self.max_rate) / self._rate_per_sec
