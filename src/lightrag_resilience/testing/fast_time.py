"""Time whose waits pass at once, on any event loop, and rate limits by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

from lightrag_resilience.config.policies import LimitPolicy
from lightrag_resilience.errors import RateLimitedError
from lightrag_resilience.limits.rate_limiter import TokenRate

__all__ = ["FastLimiter", "FastTime"]


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
    """The rate limits of one dependency: decisions of the local ones, and waits in no time.

    In place of limits by the timers of an event loop. Requests go by the cell rate algorithm, too.

    Args:
        name: The dependency.
        policy: Its limits.
        time: By which they wait.
    """

    def __init__(self, name: str, policy: LimitPolicy, time: FastTime) -> None:
        self._name = name
        self._time = time
        self.on_cooldown: Callable[[float], None] | None = None
        self.policy = policy

    @property
    def policy(self) -> LimitPolicy:
        """The limits; others begin with a whole burst."""
        return self._policy

    @policy.setter
    def policy(self, policy: LimitPolicy) -> None:
        self._policy = policy
        burst = int(policy.request_burst)
        as_tokens = replace(policy, tpm=policy.rpm, token_burst=burst)
        self._requests = TokenRate(as_tokens, 1.0) if policy.rpm else None
        self._tokens = TokenRate(policy, 1.0) if policy.tpm else None

    def update_policy(self, policy: LimitPolicy) -> None:
        """Apply other limits."""
        self.policy = policy

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if one is due; False if a caller would have to wait."""
        now = self._time.now()
        if self._wait(tokens, now) > 0:
            return False
        self._reserve(tokens, now)
        return True

    async def acquire(self, tokens: int, longest: float) -> bool:
        """Wait for a turn of so many tokens, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: The turn would come later than that, or than the policy allows.
        """
        now = self._time.now()
        wait = self._wait(tokens, now)
        if wait > min(self._policy.max_wait, longest):
            raise RateLimitedError(self._name, wait, "in the time of a test")
        self._reserve(tokens, now)
        if wait > 0:
            await self._time.sleep(wait)
        return wait > 0

    def settle(self, reserved: int, used: int) -> None:
        """Correct the tokens reserved for a call to those it used."""
        if self._tokens is not None:
            self._tokens.correct(reserved, used)

    def cool_down(self, seconds: float) -> None:
        """Do nothing: there is no other worker."""

    def _wait(self, tokens: int, now: float) -> float:
        requests, rate = self._requests, self._tokens
        waits = [0.0]
        if requests is not None:
            waits.append(requests.ready(1, now) - now)
        if rate is not None:
            waits.append(rate.ready(tokens, now) - now)
        return max(waits)

    def _reserve(self, tokens: int, now: float) -> None:
        if self._requests is not None:
            self._requests.reserve(1, now)
        if self._tokens is not None:
            self._tokens.reserve(tokens, now)
