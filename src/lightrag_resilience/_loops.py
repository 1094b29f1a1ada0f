"""What a guard keeps for each event loop: nothing that waits may be shared between loops."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

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
        gap_timer: Ends the wait for a stream's next item.
        line: What a call waits for before it is sent; None while there is nothing to wait for.
    """

    __slots__ = ("_line", "gap_timer", "line", "loop", "timer")

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
        gap = policy.timeout.gap or attempt
        self.gap_timer = Timer(gap, loop, clock) if gap else None
        self._line = Line(name, policy, clock, shared)
        self.line = self._line if self._line.is_needed else None

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

    def __init__(
        self, name: str, policy: Policy, clock: Callable[[], float], shared: SharedLimit | None
    ) -> None:
        self._name = name
        self._policy = policy
        self._clock = clock
        self._shared = shared
        self._cold_until = -math.inf
        self._parts: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopParts] = WeakKeyDictionary()
        if shared is not None:
            shared.heard_cooldown = self._cool_down_here

    def enter(self, loop: asyncio.AbstractEventLoop) -> tuple[LoopParts, bool]:
        """The parts of a loop, and whether they are new."""
        parts = self._parts.get(loop)
        if parts is not None:
            return parts, False
        parts = LoopParts(self._name, self._policy, loop, self._clock, shared=self._shared)
        if (left := self._cold_until - self._clock()) > 0:
            parts.cool_down(left)
        self._parts[loop] = parts
        return parts, True

    def change(self, policy: Policy) -> None:
        """New calls go by another policy; those under way end by the one they began with."""
        self._policy = policy
        self._parts = WeakKeyDictionary()
        if self._shared is not None:
            self._shared.policy = policy.limit

    @property
    def occupancy(self) -> Occupancy:
        """How the places of all loops are taken; any thread may ask."""
        found = [parts.occupancy for parts in list(self._parts.values())]
        limits = [each.limit for each in found if each.limit is not None]
        in_use, waiting = (sum(each.in_use for each in found), sum(each.waiting for each in found))
        return Occupancy(sum(limits) if limits else None, in_use, waiting)

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait: no call of any worker goes before."""
        self._cool_down_here(seconds)
        if self._shared is not None:
            self._shared.cool_down(seconds)

    def _cool_down_here(self, seconds: float) -> None:
        self._cold_until = max(self._cold_until, self._clock() + seconds)
        for parts in list(self._parts.values()):
            parts.cool_down(seconds)
