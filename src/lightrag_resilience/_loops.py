"""What a guard keeps for each event loop: nothing that waits may be shared between loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .concurrency import Places
from .limits import RateLimit
from .policy import Policy
from .timeouts import Timer

__all__ = ["LoopParts"]


class LoopParts:
    """Timers, rate limit and places of one dependency on one event loop; None where not asked for.

    Args:
        name: The dependency.
        policy: What is asked for.
        loop: The loop.
        clock: Monotonic seconds.

    Attributes:
        timer: Ends an attempt, or a whole call where that is shorter.
        gap_timer: Ends the wait for a stream's next item.
        queued: Whether a call may have to wait for a limit.
    """

    __slots__ = ("gap_timer", "loop", "places", "queued", "rate", "timer")

    def __init__(
        self,
        name: str,
        policy: Policy,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.loop = loop
        attempt, total = policy.timeout.attempt, policy.timeout.total
        limits = [seconds for seconds in (attempt, total) if seconds]
        self.timer = Timer(min(limits), loop, clock) if limits else None
        self.gap_timer = Timer(attempt, loop, clock) if attempt else None
        self.rate = RateLimit(name, policy.limit) if policy.limit.rpm else None
        self.places = (
            Places(name, policy.concurrency) if policy.concurrency.max_concurrent else None
        )
        self.queued = self.rate is not None or self.places is not None
