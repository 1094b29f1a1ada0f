"""Local rate limits: requests and tokens a minute, of one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Protocol

from lightrag_resilience.config.policies import LimitPolicy
from lightrag_resilience.errors import RateLimitedError

from .aiolimiter_compat import LeakyBucket

__all__ = ["LocalRateLimiter", "RateLimiter", "SharedLimiter"]

_MINUTE = 60.0  # seconds
_RESOLUTION = 1e-6  # seconds; a shorter sleep may not move the clock


class RateLimiter(Protocol):
    """Hands out turns in order of arrival; `settle` corrects their tokens afterwards."""

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if one is due; False if a caller would have to wait."""
        ...

    async def acquire(self, tokens: int, longest: float) -> bool:
        """Wait for a turn of so many tokens, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: The turn would come later than that, or than the policy allows.
        """
        ...

    def settle(self, reserved: int, used: int) -> None:
        """Correct the tokens reserved for a call to those it used."""

    def update_policy(self, policy: LimitPolicy) -> None:
        """Apply other limits of the same kinds, without a new burst."""


class SharedLimiter(RateLimiter, Protocol):
    """A rate limiter of all workers together. Safe in any thread."""

    policy: LimitPolicy
    on_cooldown: Callable[[float], None] | None
    """Called with the seconds that a provider asked another worker to wait."""

    def cool_down(self, seconds: float) -> None:
        """Begin a cool-down in all workers."""


class LocalRateLimiter:
    """The limits of one dependency on one event loop.

    Requests go through aiolimiter's leaky bucket. Tokens do not: it serves waiters by size, so a
    large call would starve. For tokens the head of the queue waits by the generic cell rate
    algorithm (ITU-T I.371).

    Args:
        name: The dependency.
        policy: A policy with a limit.
        share: The part of the limits that this process may use, above 0 to 1.
        owed: Seconds until the requests, and the tokens, sent before are paid for; negative where
            they have been for so long.

    Attributes:
        waiting: Calls that wait for their turns, and the sum of their tokens.
    """

    def __init__(
        self,
        name: str,
        policy: LimitPolicy,
        share: float = 1.0,
        *,
        owed: tuple[float, float] = (-_MINUTE, -_MINUTE),
    ) -> None:
        self._name = name
        self._share = share
        self._max_wait = policy.max_wait
        self._tokens = _Tokens(policy, share) if policy.tpm else None
        if self._tokens is not None and owed[1] > -_MINUTE:
            self._tokens.owe(owed[1])
        self._bucket: LeakyBucket | None = None
        if policy.rpm:
            self._bucket = LeakyBucket(*_bucket_size(policy, share))
            if owed[0] > 0:
                self._bucket.owe(owed[0])
        # AsyncLimiter is not FIFO: a newcomer can overtake a waiter that has just been woken.
        # This lock restores FIFO.
        self._lock = asyncio.Lock()
        self._settled = asyncio.Event()
        self.waiting = (0, 0)

    def update_policy(self, policy: LimitPolicy) -> None:
        """Apply other limits of the same kinds, also to those that wait, without a new burst."""
        self._max_wait = policy.max_wait
        if self._bucket is not None:
            self._bucket.change(*_bucket_size(policy, self._share))
        if self._tokens is not None:
            self._tokens.change(policy, self._share)
            self._settled.set()

    @property
    def owed(self) -> tuple[float, float]:
        """Seconds until the requests, and the tokens, sent so far are paid for."""
        return (
            0.0 if self._bucket is None else self._bucket.owed,
            0.0 if self._tokens is None else self._tokens.owed,
        )

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if one is due; False if a caller would have to wait."""
        now = asyncio.get_running_loop().time()
        if self.waiting[0] or self._wait(tokens, now) > 0:
            return False
        if self._tokens is not None:
            self._tokens.reserve(tokens, now)
        if self._bucket is not None:
            self._bucket.take()
        return True

    async def acquire(self, tokens: int, longest: float) -> bool:
        """Wait for a turn of so many tokens, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: The turn would come later than that, or than the policy allows.
        """
        if self.try_acquire(tokens):
            return False
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        wait = self._wait(tokens, arrived)
        if wait > min(self._max_wait, longest):
            raise RateLimitedError(self._name, wait, self._why(tokens))
        self._count_waiting(1, tokens)
        try:
            async with self._lock:
                if self._bucket is not None:
                    await self._bucket.acquire()
                if self._tokens is not None:
                    await self._wait_for_tokens(tokens, self._tokens, arrived)
                    self._tokens.reserve(tokens, arrived)
        finally:
            self._count_waiting(-1, -tokens)
        return True

    def settle(self, reserved: int, used: int) -> None:
        """Correct the tokens reserved for a call to those it used."""
        if self._tokens is not None:
            self._tokens.correct(reserved, used)
            self._settled.set()

    async def _wait_for_tokens(self, tokens: int, budget: _Tokens, arrived: float) -> None:
        """Wait at the head of the queue; less if settled calls return tokens meanwhile."""
        loop = asyncio.get_running_loop()
        while (wait := budget.ready(tokens, arrived) - loop.time()) > _RESOLUTION:
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._settled.wait()

    def _wait(self, tokens: int, now: float) -> float:
        """Seconds that one more caller would wait, with so many tokens."""
        wait = 0.0
        if self._bucket is not None:
            wait = self._bucket.wait(self.waiting[0])
        if self._tokens is not None:
            wait = max(wait, self._tokens.ready(tokens, now, self._tokens.queued) - now)
        return wait

    def _why(self, tokens: int) -> str:
        waiting = f"with {self.waiting[0]} calls waiting"
        is_large = self._tokens is not None and self._tokens.is_large(tokens)
        return f"for a call of {tokens} tokens, {waiting}" if is_large else waiting

    def _count_waiting(self, calls: int, tokens: int) -> None:
        self.waiting = (self.waiting[0] + calls, self.waiting[1] + tokens)
        if self._tokens is not None:
            self._tokens.queued += math.copysign(self._tokens.cost(abs(tokens)), tokens)


def _bucket_size(policy: LimitPolicy, share: float) -> tuple[float, float]:
    """The burst of requests, and the seconds that it takes to send as many."""
    burst = max(1.0, policy.request_burst * share)
    return burst, burst * _MINUTE / ((policy.rpm or 0.0) * share)


class _Tokens:
    """Tokens by the generic cell rate algorithm; use above the limit delays later calls.

    Attributes:
        queued: Seconds' worth of tokens of the callers that wait and have reserved none yet.
    """

    __slots__ = ("_burst", "_interval", "_largest", "_paid_at", "queued")

    def __init__(self, policy: LimitPolicy, share: float) -> None:
        self._set(policy, share)
        self.queued = 0.0
        self._paid_at = -math.inf
        """Monotonic seconds at which all reserved tokens are paid for: GCRA's TAT."""

    def _set(self, policy: LimitPolicy, share: float) -> None:
        self._largest = (policy.tpm or 0.0) * share
        self._interval = _MINUTE / self._largest
        self._burst = policy.tokens_at_once * share * self._interval

    def change(self, policy: LimitPolicy, share: float) -> None:
        """Apply another limit; what was sent counts for a minute at most."""
        owed, queued = self.owed / self._interval, self.queued / self._interval
        self._set(policy, share)
        self.queued = queued * self._interval
        self.owe(min(owed * self._interval, _MINUTE))

    @property
    def owed(self) -> float:
        """Seconds until all reserved tokens are paid for."""
        return max(self._paid_at - asyncio.get_running_loop().time(), 0.0)

    def owe(self, seconds: float) -> None:
        """Begin with so many seconds' worth to be paid for."""
        self._paid_at = asyncio.get_running_loop().time() + seconds

    def ready(self, tokens: int, arrived: float, ahead: float = 0.0) -> float:
        """Monotonic seconds at which so many tokens conform.

        Args:
            tokens: Those above a burst add up while nothing is sent. That time counts also before
                the caller arrived: else one that is rejected would wait as long each time.
            arrived: Monotonic seconds at which the caller arrived.
            ahead: Seconds' worth of tokens of the callers before it.
        """
        since = arrived if ahead else self._since(tokens, arrived)
        return max(self._paid_at, since) + ahead + self.cost(tokens) - self._burst

    def reserve(self, tokens: int, arrived: float) -> None:
        """Take so many tokens."""
        self._paid_at = max(self._paid_at, self._since(tokens, arrived)) + self.cost(tokens)

    def correct(self, reserved: int, used: int) -> None:
        """Replace the tokens reserved for a call by those it used."""
        now = asyncio.get_running_loop().time()
        # What is returned late was not saved up: later calls have been sent since.
        least = min(self._paid_at, now) if used < reserved else -math.inf
        self._paid_at = max(self._paid_at + self.cost(used) - self.cost(reserved), least)

    def is_large(self, tokens: int) -> bool:
        """Whether they are more than may be sent at once."""
        return self.cost(tokens) > self._burst

    def _since(self, tokens: int, arrived: float) -> float:
        """Monotonic seconds from which on idle time counts for so many tokens."""
        return arrived - max(self.cost(tokens) - self._burst, 0.0)

    def cost(self, tokens: int) -> float:
        """Seconds they are worth, at most a minute: else a larger call could never pass."""
        return min(tokens, self._largest) * self._interval
