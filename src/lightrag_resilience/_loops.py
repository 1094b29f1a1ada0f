"""What a guard keeps for each event loop: nothing that waits may be shared between loops."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from .concurrency import Occupancy
from .limits import Limit, SharedLimit
from .line import Line
from .policy import Policy
from .timeouts import Timer

__all__ = ["LoopParts", "Loops"]


class LoopParts:
    """Timers, rate limit and places of one dependency on one event loop; None where not asked for.

    Args:
        name: The dependency.
        policy: What is asked for.
        loop: The loop.
        clock: Monotonic seconds.
        shared: The limit of all workers together, instead of one of this loop's own.

    Attributes:
        timer: Ends an attempt, or a whole call where that is shorter.
        line: What a call waits for before it is sent; None while there is nothing to wait for.
    """

    __slots__ = ("_clock", "_gap_timer", "_line", "_policy", "line", "loop", "timer")

    def __init__(
        self,
        name: str,
        policy: Policy,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        *,
        shared: Limit | None = None,
    ) -> None:
        self.loop = loop
        attempt, total = policy.timeout.attempt, policy.timeout.total
        limits = [seconds for seconds in (attempt, total) if seconds]
        self.timer = Timer(min(limits), loop, clock) if limits else None
        self._gap_timer: Timer | None = None  # only streams need it
        self._policy = policy
        self._clock = clock
        self._line = Line(name, policy, clock, shared)
        self.line = self._line if self._line.is_needed else None

    @property
    def gap_timer(self) -> Timer | None:
        """Ends the wait for a stream's next item."""
        if self._gap_timer is None:
            gap = self._policy.timeout.gap or self._policy.timeout.attempt
            self._gap_timer = Timer(gap, self.loop, self._clock) if gap else None
        return self._gap_timer

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait; from any thread."""
        self._line.cooldown.begin(seconds)
        self.line = self._line

    @property
    def occupancy(self) -> Occupancy:
        """How the places of this loop are taken; without places, what runs against the time."""
        found = self._line.occupancy
        return found if found.limit is not None else Occupancy(in_use=len(self.timer or ()))

    def warm_up(self) -> None:
        """Calls go past the line again, if there is nothing left to wait for."""
        if not self._line.is_needed:
            self.line = None


class Loops:
    """The parts of one dependency for each event loop that is there.

    Args:
        name: The dependency.
        policy: What is asked for.
        clock: Monotonic seconds.
        shared: The limit of all workers together, if there is one.
    """

    __slots__ = ("_clock", "_cold_until", "_name", "_parts", "_policy", "_shared")

    def __init__(
        self, name: str, policy: Policy, clock: Callable[[], float], shared: SharedLimit | None
    ) -> None:
        self._name = name
        self._policy = policy
        self._clock = clock
        self._shared = shared
        self._cold_until = -math.inf
        self._parts: list[LoopParts] = []  # loops are few
        if shared is not None:
            shared.heard_cooldown = self._cool_down_here

    def enter(self, loop: asyncio.AbstractEventLoop) -> tuple[LoopParts, bool]:
        """The parts of a loop, and whether they are new."""
        for parts in self._parts:
            if parts.loop is loop:
                return parts, False
        parts = LoopParts(self._name, self._policy, loop, self._clock, shared=self._shared)
        if (left := self._cold_until - self._clock()) > 0:
            parts.cool_down(left)
        self._parts.append(parts)
        for other in list(self._parts):
            if other.loop.is_closed():
                with contextlib.suppress(ValueError):  # another thread has done so
                    self._parts.remove(other)
        return parts, True

    def change(self, policy: Policy) -> None:
        """New calls go by another policy; those under way end by the one they began with."""
        self._policy = policy
        self._parts = []
        if self._shared is not None:
            self._shared.policy = policy.limit

    @property
    def occupancy(self) -> Occupancy:
        """How the places of all loops are taken; any thread may ask."""
        found = [parts.occupancy for parts in list(self._parts)]
        limits = [each.limit for each in found if each.limit is not None]
        in_use, waiting = (sum(each.in_use for each in found), sum(each.waiting for each in found))
        standstill = max(self._cold_until - self._clock(), 0.0)
        return Occupancy(sum(limits) if limits else None, in_use, waiting, standstill)

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait: no call of any worker goes before."""
        self._cool_down_here(seconds)
        if self._shared is not None:
            self._shared.cool_down(seconds)

    def _cool_down_here(self, seconds: float) -> None:
        self._cold_until = max(self._cold_until, self._clock() + seconds)
        for parts in list(self._parts):
            parts.cool_down(seconds)
