"""Cool-down: after a 429 all calls pause as long as the provider asked, then a canary goes first.

Its result decides. If it succeeds, or its stream begins, the others follow; if it is throttled
again, they pause again, and none of them has used up an attempt. Without a result after a while
the next canary goes: an answer may take long, a 429 does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable

from lightrag_resilience.errors import RateLimitedError
from lightrag_resilience.failures.classifier import Failure, FailureKind

__all__ = ["Cooldown"]

Sleep = Callable[[float], Awaitable[object]]

_LONG_AGO = -math.inf  # monotonic seconds
_STAGGER_SHARE = 0.1  # of the wait, so that the canaries of all workers do not go at once
_LONGEST_STAGGER = 0.5  # seconds
_CANARY_TIMEOUT = 5.0  # seconds: a provider throttles at once, but may take longer to answer


class Cooldown:
    """The pause of one dependency on one event loop; its callers wait in order of arrival.

    Args:
        name: The dependency.
        clock: Monotonic seconds.

    Attributes:
        until: Monotonic seconds until which no call goes; -inf without a pause.
    """

    __slots__ = (
        "_canaries",
        "_canary_done",
        "_clock",
        "_name",
        "_next_canary_at",
        "_queue_order",
        "_throttled_at",
        "until",
    )

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.until = _LONG_AGO
        self._name = name
        self._clock = clock
        self._canaries: dict[object, float] = {}  # calls, and when they were sent
        self._next_canary_at = self._throttled_at = _LONG_AGO
        self._queue_order: asyncio.Lock | None = None  # made on first use, as few throttle
        self._canary_done: asyncio.Event | None = None

    @property
    def is_on(self) -> bool:
        """Whether calls are paused, or wait for the canary."""
        return self.until > _LONG_AGO

    def begin(self, seconds: float) -> None:
        """Pause, as the provider asked. Safe in any thread."""
        self._throttled_at = now = self._clock()
        self.until = max(self.until, now + seconds)

    def may_proceed(self, call: object) -> bool:
        """Whether a call need not wait: there is no pause, or it is a canary."""
        return not self.is_on or call in self._canaries

    async def wait(self, call: object, longest: float, sleep: Sleep = asyncio.sleep) -> bool:
        """Wait until the call may go, at most `longest` seconds. True if there was a wait.

        Args:
            call: The call.
            longest: Seconds.
            sleep: Waits so many seconds; if the clock shows fewer, the rest is waited for.

        Raises:
            RateLimitedError: It may not go that soon.
        """
        if self.may_proceed(call):
            return False
        if (remaining := self.until - self._clock()) > longest:
            raise self._rejection(remaining)
        if self._queue_order is None or self._canary_done is None:
            self._queue_order, self._canary_done = asyncio.Lock(), asyncio.Event()
        try:
            async with asyncio.timeout(longest if longest < math.inf else None), self._queue_order:
                await self._sleep_until_over(call, self._canary_done, sleep)
        except TimeoutError:
            raise self._rejection(max(self.until - self._clock(), 0.0)) from None
        return True

    async def _sleep_until_over(
        self, call: object, canary_done: asyncio.Event, sleep: Sleep
    ) -> None:
        while self.is_on:
            if (remaining := self.until - self._clock()) > 0:
                stagger = min(remaining * _STAGGER_SHARE, _LONGEST_STAGGER)
                await sleep(remaining + random.uniform(0.0, stagger))  # noqa: S311
                sleep = asyncio.sleep  # of a test, it may not move the clock
            elif not self._canaries or self._clock() >= self._next_canary_at:
                self._canaries[call] = now = self._clock()
                self._next_canary_at = now + _CANARY_TIMEOUT
                return
            else:
                canary_done.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._next_canary_at - self._clock()):
                        await canary_done.wait()

    def on_result(self, call: object, failure: Failure | None) -> None:
        """A call succeeded or failed; ends the pause if it is a canary that was not throttled."""
        sent_at = self._canaries.pop(call, None)
        if sent_at is None:
            return
        passing = (
            failure is None
            or failure.kind is FailureKind.FATAL
            or not (failure.retry_after or failure.counts or failure.is_local)
        )
        # A canary sent before the newest 429 says nothing about it.
        if passing and sent_at >= self._throttled_at:
            self.until = _LONG_AGO
            self._canaries.clear()
        self._wake_others()

    def on_cancelled(self, call: object) -> None:
        """A call ended without a verdict; if it was the canary, the next one goes."""
        if self._canaries.pop(call, None) is not None:
            self._wake_others()

    def _wake_others(self) -> None:
        if self._canary_done is not None:
            self._canary_done.set()

    def _rejection(self, remaining: float) -> RateLimitedError:
        return RateLimitedError(self._name, remaining, "for now, as the provider throttles")
