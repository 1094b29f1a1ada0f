"""After a 429 all calls pause for as long as the provider asked; then one goes first.

What comes of the first decides: if it succeeds, or its stream begins, the others follow; if it is
throttled again, they pause again, and none of them has used up an attempt. Where nothing is
heard of it for a while the next one goes: an answer may take long, and being throttled does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable

from lightrag_resilience.errors import RateLimitedError
from lightrag_resilience.failures.classifier import Failure, FailureKind

__all__ = ["Cooldown"]

_NEVER = -math.inf
_STAGGER = 0.1  # of the wait, so that workers do not all go first at once
_LONGEST_STAGGER = 0.5  # seconds
_TRUST = 5.0  # seconds: a provider throttles at once, and answers as long as it takes


class Cooldown:
    """The standstill of one dependency on one event loop, first come first served.

    Args:
        name: The dependency.
        clock: Monotonic seconds.

    Attributes:
        until: Monotonic seconds until which nothing goes; -inf where there is no standstill.
    """

    __slots__ = (
        "_canaries",
        "_canary_done",
        "_clock",
        "_name",
        "_queue_order",
        "_throttled_at",
        "_trusted_at",
        "until",
    )

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.until = _NEVER
        self._name = name
        self._clock = clock
        self._canaries: dict[
            object, float
        ] = {}  # who went first, and when: more, if nothing is heard
        self._trusted_at = self._throttled_at = _NEVER
        self._queue_order: asyncio.Lock | None = None  # most dependencies never ask to wait
        self._canary_done: asyncio.Event | None = None

    @property
    def is_on(self) -> bool:
        """Whether calls are paused, or wait for the one that goes first."""
        return self.until > _NEVER

    def begin(self, seconds: float) -> None:
        """The provider asked to wait; from any thread."""
        self._throttled_at = now = self._clock()
        self.until = max(self.until, now + seconds)

    def may_proceed(self, call: object) -> bool:
        """Whether a call need not wait."""
        return not self.is_on or call in self._canaries

    async def wait(self, call: object, longest: float) -> bool:
        """Until the call may go, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: It may not go that soon.
        """
        if self.may_proceed(call):
            return False
        if (left := self.until - self._clock()) > longest:
            raise self._rejection(left)
        if self._queue_order is None or self._canary_done is None:
            self._queue_order, self._canary_done = asyncio.Lock(), asyncio.Event()
        try:
            async with asyncio.timeout(longest if longest < math.inf else None), self._queue_order:
                await self._sleep_until_over(call, self._canary_done)
        except TimeoutError:
            raise self._rejection(max(self.until - self._clock(), 0.0)) from None
        return True

    async def _sleep_until_over(self, call: object, judged: asyncio.Event) -> None:
        while self.is_on:
            if (left := self.until - self._clock()) > 0:
                stagger = min(left * _STAGGER, _LONGEST_STAGGER)
                await asyncio.sleep(left + random.uniform(0.0, stagger))  # noqa: S311
            elif not self._canaries or self._clock() >= self._trusted_at:
                self._canaries[call] = now = self._clock()
                self._trusted_at = now + _TRUST
                return
            else:
                judged.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._trusted_at - self._clock()):
                        await judged.wait()

    def on_result(self, call: object, failure: Failure | None) -> None:
        """A call succeeded, or failed so."""
        let_in = self._canaries.pop(call, None)
        if let_in is None:
            return
        passing = (
            failure is None
            or failure.kind is FailureKind.FATAL
            or not (failure.retry_after or failure.counts or failure.is_local)
        )
        if passing and let_in >= self._throttled_at:  # of what was asked since it tells nothing
            self.until = _NEVER
            self._canaries.clear()
        self._wake_others()

    def on_cancelled(self, call: object) -> None:
        """A call ended with no verdict: the next one goes first."""
        if self._canaries.pop(call, None) is not None:
            self._wake_others()

    def _wake_others(self) -> None:
        if self._canary_done is not None:
            self._canary_done.set()

    def _rejection(self, left: float) -> RateLimitedError:
        return RateLimitedError(self._name, left, "as the provider asked")
