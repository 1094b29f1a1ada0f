"""Time whose waits pass at once, on any event loop, and rate limits by it."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

from lightrag_resilience.config.policies import LimitPolicy
from lightrag_resilience.errors import RateLimitedError
from lightrag_resilience.limits.priority import Priority, current_priority

__all__ = ["FastLimiter", "FastTime"]

_MINUTE = 60.0  # seconds
_LONG_AGO = -math.inf


class FastTime:
    """Passes as the time of a clock does, and by each wait at once. Thread-safe.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ahead = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        with self._lock:
            self._ahead += seconds

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds pass. Those of waits that begin together pass together."""
        due = self.now() + seconds
        await asyncio.sleep(0)
        with self._lock:
            self._ahead = max(self._ahead, due - self._clock())


class FastLimiter:
    """The rate limits of one dependency, by the cell rate algorithm; waits take no time.

    Args:
        name: The dependency.
        policy: Its limits.
        time: By which they wait.
    """

    on_cooldown: Callable[[float], None] | None = None

    def __init__(self, name: str, policy: LimitPolicy, time: FastTime) -> None:
        self._name = name
        self._time = time
        self._paid_at = [_LONG_AGO, _LONG_AGO]  # monotonic seconds: of requests, of tokens
        self.update_policy(policy)

    def update_policy(self, policy: LimitPolicy) -> None:
        """Apply other limits."""
        self.policy = policy

    def try_acquire(self, tokens: int) -> bool:
        """Leave it to `acquire`, which takes no time either."""
        del tokens
        return False

    async def acquire(self, tokens: int, longest: float) -> bool:
        """Wait for a turn of so many tokens, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: The turn would come later than that, or than the policy allows.
        """
        policy, now, wait, paid_at = self.policy, self._time.now(), 0.0, list(self._paid_at)
        limits = (policy.rpm, policy.request_burst, 1), (policy.tpm, policy.tokens_at_once, tokens)
        for index, (limit, burst, size) in enumerate(limits):
            if limit:
                begins = max(paid_at[index], now)
                paid_at[index] = begins + min(size, limit) * _MINUTE / limit
                wait = max(wait, paid_at[index] - now - burst * _MINUTE / limit)
        if current_priority.get() is not Priority.INTERACTIVE:
            longest = policy.max_wait  # a late reservation would only save time of queries
        if wait > min(policy.max_wait, longest):
            raise RateLimitedError(self._name, wait, "in the time of a test")
        self._paid_at = paid_at
        await self._time.sleep(wait)
        return wait > 0

    def settle(self, reserved: int, used: int) -> None:
        """Correct the tokens reserved for a call to those it used."""
        self._paid_at[1] += (used - reserved) * _MINUTE / (self.policy.tpm or math.inf)

    def cool_down(self, seconds: float) -> None:
        """Do nothing: there is no other worker."""
