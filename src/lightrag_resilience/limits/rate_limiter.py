"""How many requests and tokens a minute, as far as one process can tell."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Protocol

from aiolimiter import AsyncLimiter

from lightrag_resilience.config.policies import LimitPolicy
from lightrag_resilience.errors import RateLimitedError

__all__ = ["LocalRateLimiter", "RateLimiter", "SharedLimiter"]

_MINUTE = 60.0  # seconds
_RESOLUTION = 1e-6  # seconds; a shorter sleep may not move the clock


class RateLimiter(Protocol):
    """Hands out turns, first come first served, and learns what became of their tokens."""

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if it has come. False if a caller would have to wait."""
        ...

    async def acquire(self, tokens: int, longest: float) -> bool:
        """Wait for a turn of so many tokens, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: The turn would come later than that, or than the policy allows.
        """
        ...

    def settle(self, booked: int, used: int) -> None:
        """A call for which tokens were booked has used so many."""


class SharedLimiter(RateLimiter, Protocol):
    """What all workers may send together; any thread may use it."""

    policy: LimitPolicy
    on_cooldown: Callable[[float], None] | None
    """Told when another worker was asked to wait, and for how many seconds."""

    def cool_down(self, seconds: float) -> None:
        """Tell all workers to wait."""


class LocalRateLimiter:
    """The limits of one dependency on one event loop.

    Requests go through aiolimiter's leaky bucket. Tokens do not: its waiters are served by size,
    so that a large call starves. The head of the queue waits for them, by the generic cell rate
    algorithm.

    Args:
        name: The dependency.
        policy: A policy with a limit.
        share: Of the limits that are this process's.
        owed: Seconds until the requests, and the tokens, that went before are paid for.

    Attributes:
        waiting: Calls that wait for their turns, and the tokens of them all.
    """

    def __init__(
        self,
        name: str,
        policy: LimitPolicy,
        share: float = 1.0,
        *,
        owed: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self._name = name
        self._max_wait = policy.max_wait
        self._tokens = _Tokens(policy, share) if policy.tpm else None
        if self._tokens is not None and owed[1] > 0:
            self._tokens.owe(owed[1])
        self._bucket: _Bucket | None = None
        if policy.rpm:
            rpm = policy.rpm * share
            burst = max(1.0, policy.request_burst * share)
            self._bucket = _Bucket(burst, time_period=burst * _MINUTE / rpm)
            if owed[0] > 0:
                self._bucket.owe(owed[0])
        # Alone, the bucket lets a newcomer overtake a caller that just woke up.
        self._lock = asyncio.Lock()
        self._settled = asyncio.Event()
        self.waiting = (0, 0)

    @property
    def owed(self) -> tuple[float, float]:
        """Seconds until the requests, and the tokens, that have gone are paid for."""
        return (
            0.0 if self._bucket is None else self._bucket.owed,
            0.0 if self._tokens is None else self._tokens.owed,
        )

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if it has come. False if a caller would have to wait."""
        now = asyncio.get_running_loop().time()
        if self.waiting[0] or self._wait(tokens, now) > 0:
            return False
        if self._tokens is not None:
            self._tokens.book(tokens, now)
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
        came = loop.time()
        wait = self._wait(tokens, came)
        if wait > min(self._max_wait, longest):
            raise RateLimitedError(self._name, wait, f"with {self.waiting[0]} calls waiting")
        self._wait_too(1, tokens)
        try:
            async with self._lock:
                if self._bucket is not None:
                    await self._bucket.acquire()
                if self._tokens is not None:
                    await self._wait_for_tokens(tokens, self._tokens, came)
                    self._tokens.book(tokens, came)
        finally:
            self._wait_too(-1, -tokens)
        return True

    def settle(self, booked: int, used: int) -> None:
        """A call for which tokens were booked has used so many."""
        if self._tokens is not None:
            self._tokens.correct(booked, used)
            self._settled.set()

    async def _wait_for_tokens(self, tokens: int, budget: _Tokens, came: float) -> None:
        """Wait at the head of the queue; tokens that are given back meanwhile make it shorter."""
        loop = asyncio.get_running_loop()
        while (wait := budget.ready(tokens, came) - loop.time()) > _RESOLUTION:
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._settled.wait()

    def _wait(self, tokens: int, now: float) -> float:
        """Seconds until the turn of one more caller, with so many tokens."""
        wait = 0.0
        if self._bucket is not None:
            wait = self._bucket.wait(self.waiting[0])
        if self._tokens is not None:
            wait = max(wait, self._tokens.ready(tokens, now, self._tokens.queued) - now)
        return wait

    def _wait_too(self, calls: int, tokens: int) -> None:
        self.waiting = (self.waiting[0] + calls, self.waiting[1] + tokens)
        if self._tokens is not None:
            self._tokens.queued += math.copysign(self._tokens.cost(abs(tokens)), tokens)


class _Tokens:
    """Tokens by the generic cell rate algorithm; what is over is a debt that later calls wait for.

    Attributes:
        queued: Seconds that the tokens of all take who wait, and have booked none yet.
    """

    __slots__ = ("_burst", "_full", "_interval", "_most", "queued")

    def __init__(self, policy: LimitPolicy, share: float) -> None:
        tpm = (policy.tpm or 0.0) * share
        self._interval = _MINUTE / tpm
        self._burst = policy.tokens_at_once * share * self._interval
        self._most = tpm
        self.queued = 0.0
        self._full = -math.inf
        """Monotonic seconds at which no booked token would be left to pay for."""

    @property
    def owed(self) -> float:
        """Seconds until all that were booked are paid for."""
        return max(self._full - asyncio.get_running_loop().time(), 0.0)

    def owe(self, seconds: float) -> None:
        """Begin with so many seconds' worth to be paid for."""
        self._full = asyncio.get_running_loop().time() + seconds

    def ready(self, tokens: int, came: float, ahead: float = 0.0) -> float:
        """When so many fit in, for a caller that came at some time, after `ahead` seconds' worth.

        More than a burst never fits in at once: from the time when the caller came, they run up.
        """
        return max(self._full, came) + ahead + self.cost(tokens) - self._burst

    def book(self, tokens: int, came: float) -> None:
        """Take so many."""
        self._full = max(self._full, came) + self.cost(tokens)

    def correct(self, booked: int, used: int) -> None:
        """So many were used where so many were booked."""
        self._full += self.cost(used) - self.cost(booked)

    def cost(self, tokens: int) -> float:
        """Seconds that they take; a call larger than a minute's limit must be able to pass."""
        return min(tokens, self._most) * self._interval


class _Bucket(AsyncLimiter):
    __slots__ = ()

    def take(self) -> None:
        """What `acquire` does where it need not wait, without a coroutine."""
        self._level += 1

    @property
    def owed(self) -> float:
        """Seconds until all that went is paid for."""
        self._leak()
        return self._level / self._rate_per_sec

    def owe(self, seconds: float) -> None:
        """Begin with so many seconds' worth to be paid for."""
        self._leak()  # from now on, not from the beginning of the clock
        self._level = seconds * self._rate_per_sec

    def wait(self, ahead: int) -> float:
        """Seconds until one more request fits in, after others."""
        self.has_capacity()  # brings the level up to date
        return max(self._level + ahead + 1 - self.max_rate, 0.0) / self._rate_per_sec
