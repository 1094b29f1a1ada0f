"""Background calls reserve turns one by one and not far ahead, so that queries wait little.

A reservation in a rate limit cannot be taken back, and all workers share it: a query waits for
whatever ingest has reserved before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lightrag_resilience.errors import RateLimitedError

from .priority import Priority, current_priority
from .rate_limiter import RateLimiter

__all__ = ["BackgroundRateLimiter"]

_RESERVED_AHEAD = 1.0  # seconds
_LONGEST_AT_HEAD = 5.0  # seconds; then a background call reserves as any other, so none starves
_SHORTEST_SLEEP = 0.05  # seconds


class BackgroundRateLimiter:
    """A rate limiter for one dependency on one event loop, which delays background calls.

    Args:
        name: The dependency.
        limit: The rate limiter in which turns are reserved.
        clock: Monotonic seconds.
    """

    def __init__(self, name: str, limit: RateLimiter, clock: Callable[[], float]) -> None:
        self._name = name
        self._limit = limit
        self._clock = clock
        self._head = asyncio.Lock()
        self.settle = limit.settle
        self.update_policy = limit.update_policy

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if one is due; False if a caller would have to wait."""
        must_queue = current_priority.get() is not Priority.INTERACTIVE and self._head.locked()
        return not must_queue and self._limit.try_acquire(tokens)

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
            reason = f"for {longest:g} s, with other background calls waiting"
            raise RateLimitedError(self._name, None, reason) from None
        try:
            return await self._acquire_at_head(tokens, end)
        finally:
            self._head.release()

    async def _acquire_at_head(self, tokens: int, end: float) -> bool:
        """Reserve as soon as the turn is near."""
        starves_at = self._clock() + _LONGEST_AT_HEAD
        while True:
            now = self._clock()
            ahead = end - now if now >= starves_at else min(_RESERVED_AHEAD, end - now)
            try:
                return await self._limit.acquire(tokens, ahead)
            except RateLimitedError as rejection:
                wait = max((rejection.retry_after or 0.0) - _RESERVED_AHEAD, _SHORTEST_SLEEP)
                if now >= starves_at or now + wait > end:
                    raise
            await asyncio.sleep(min(wait, max(starves_at - now, _SHORTEST_SLEEP)))
