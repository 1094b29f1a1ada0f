"""Background calls take turns one by one and not far ahead, so that interactive ones wait little.

A turn of a rate limit is booked once and for all, by all workers together: what ingest has booked,
a query has to wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lightrag_resilience.errors import RateLimitedError

from .priority import Priority, current_priority
from .rate_limiter import RateLimiter

__all__ = ["BackgroundRateLimiter"]

_AHEAD = 1.0  # seconds
_LONG_ENOUGH = 5.0  # seconds at the head of the line; then a background call books as others do
_SHORTEST = 0.05  # seconds


class BackgroundRateLimiter:
    """Stands before the limit of one dependency on one event loop.

    Args:
        name: The dependency.
        limit: Where turns are booked.
        clock: Monotonic seconds.
    """

    def __init__(self, name: str, limit: RateLimiter, clock: Callable[[], float]) -> None:
        self._name = name
        self._limit = limit
        self._clock = clock
        self._head = asyncio.Lock()
        self.settle = limit.settle

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if it has come. False if a caller would have to wait."""
        is_behind = current_priority.get() is not Priority.INTERACTIVE and self._head.locked()
        return not is_behind and self._limit.try_acquire(tokens)

    async def acquire(self, tokens: int, longest: float) -> bool:
        """Wait for a turn of so many tokens, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: The turn would come later than that, or than the policy allows.
        """
        if current_priority.get() is Priority.INTERACTIVE:
            return await self._limit.acquire(tokens, longest)
        end = self._clock() + longest
        try:
            async with asyncio.timeout(longest):
                await self._head.acquire()
        except TimeoutError:
            reason = f"for {longest:g} s, with other calls in the background"
            raise RateLimitedError(self._name, None, reason) from None
        try:
            return await self._book(tokens, end)
        finally:
            self._head.release()

    async def _book(self, tokens: int, end: float) -> bool:
        """Book as soon as the turn is near."""
        hurry = self._clock() + _LONG_ENOUGH
        while True:
            now = self._clock()
            ahead = end - now if now >= hurry else min(_AHEAD, end - now)
            try:
                return await self._limit.acquire(tokens, ahead)
            except RateLimitedError as refusal:
                wait = max((refusal.retry_after or 0.0) - _AHEAD, _SHORTEST)
                if now >= hurry or now + wait > end:
                    raise
            await asyncio.sleep(min(wait, max(hurry - now, _SHORTEST)))
