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
        "_ahead",
        "_asked_at",
        "_clock",
        "_judged",
        "_line",
        "_name",
        "_trusted_at",
        "until",
    )

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.until = _NEVER
        self._name = name
        self._clock = clock
        self._ahead: dict[object, float] = {}  # who went first, and when: more, if nothing is heard
        self._trusted_at = self._asked_at = _NEVER
        self._line: asyncio.Lock | None = None  # most dependencies never ask to wait
        self._judged: asyncio.Event | None = None

    @property
    def is_on(self) -> bool:
        """Whether calls are paused, or wait for the one that goes first."""
        return self.until > _NEVER

    def begin(self, seconds: float) -> None:
        """The provider asked to wait; from any thread."""
        self._asked_at = now = self._clock()
        self.until = max(self.until, now + seconds)

    def lets_pass(self, call: object) -> bool:
        """Whether a call need not wait."""
        return not self.is_on or call in self._ahead

    async def wait(self, call: object, longest: float) -> bool:
        """Until the call may go, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: It may not go that soon.
        """
        if self.lets_pass(call):
            return False
        if (left := self.until - self._clock()) > longest:
            raise self._refusal(left)
        if self._line is None or self._judged is None:
            self._line, self._judged = asyncio.Lock(), asyncio.Event()
        try:
            async with asyncio.timeout(longest if longest < math.inf else None), self._line:
                await self._stand_still(call, self._judged)
        except TimeoutError:
            raise self._refusal(max(self.until - self._clock(), 0.0)) from None
        return True

    async def _stand_still(self, call: object, judged: asyncio.Event) -> None:
        while self.is_on:
            if (left := self.until - self._clock()) > 0:
                stagger = min(left * _STAGGER, _LONGEST_STAGGER)
                await asyncio.sleep(left + random.uniform(0.0, stagger))  # noqa: S311
            elif not self._ahead or self._clock() >= self._trusted_at:
                self._ahead[call] = now = self._clock()
                self._trusted_at = now + _TRUST
                return
            else:
                judged.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._trusted_at - self._clock()):
                        await judged.wait()

    def ended(self, call: object, failure: Failure | None) -> None:
        """A call succeeded, or failed so."""
        let_in = self._ahead.pop(call, None)
        if let_in is None:
            return
        passing = (
            failure is None
            or failure.kind is FailureKind.FATAL
            or not (failure.retry_after or failure.counts or failure.is_local)
        )
        if passing and let_in >= self._asked_at:  # of what was asked since it tells nothing
            self.until = _NEVER
            self._ahead.clear()
        self._let_others_look()

    def gave_up(self, call: object) -> None:
        """A call ended with no verdict: the next one goes first."""
        if self._ahead.pop(call, None) is not None:
            self._let_others_look()

    def _let_others_look(self) -> None:
        if self._judged is not None:
            self._judged.set()

    def _refusal(self, left: float) -> RateLimitedError:
        return RateLimitedError(self._name, left, "as the provider asked")
