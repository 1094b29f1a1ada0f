"""How many calls at once: a semaphore whose queue has an end."""

from __future__ import annotations

import asyncio

from .errors import QueueFullError
from .policy import ConcurrencyPolicy

__all__ = ["Places"]


class Places:
    """The places for calls of one dependency on one event loop, first come first served.

    Args:
        name: The dependency.
        policy: A policy whose `max_concurrent` is set.

    Attributes:
        waiting: Calls that wait for a place.
    """

    def __init__(self, name: str, policy: ConcurrencyPolicy) -> None:
        self._name = name
        self._policy = policy
        self._semaphore = asyncio.Semaphore(policy.max_concurrent or 1)
        self.waiting = 0

    async def acquire(self, longest: float) -> bool:
        """Take a place, waiting at most `longest` seconds for it. True if there was a wait.

        Raises:
            QueueFullError: The queue is full, or no place came free in time.
        """
        if not self._semaphore.locked():
            await self._semaphore.acquire()
            return False
        if self.waiting >= self._policy.max_queue:
            raise QueueFullError(self._name, None, f"and {self.waiting} more are waiting")
        longest = min(longest, self._policy.max_wait)
        self.waiting += 1
        try:
            async with asyncio.timeout(longest):
                await self._semaphore.acquire()
        except TimeoutError:
            raise QueueFullError(self._name, None, f"for {longest:g} s") from None
        finally:
            self.waiting -= 1
        return True

    def release(self) -> None:
        """Give a place back; the first in the queue gets it."""
        self._semaphore.release()
