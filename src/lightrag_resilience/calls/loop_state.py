"""What a guard keeps for each event loop: nothing that waits may be shared between loops."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from lightrag_resilience.config.policies import Policy
from lightrag_resilience.limits.admission import Line, is_limited
from lightrag_resilience.limits.bulkhead import Occupancy
from lightrag_resilience.limits.rate_limiter import SharedLimit
from lightrag_resilience.timeouts.loop_timers import Home, Homes

__all__ = ["LoopParts", "Loops"]

_NEVER = -math.inf


class LoopParts:
    """Timers, rate limit and places of one dependency on one event loop; None where not asked for.

    Attributes:
        home: The loop, and its thread.
        timer: Ends an attempt, or a whole call where that is shorter.
        line: What a call waits for before it is sent; None while there is nothing to wait for.
        loops: The parts of all loops.
    """

    __slots__ = ("_line", "home", "line", "loops", "timer")

    def __init__(self, loops: Loops, home: Home) -> None:
        self.home = home
        self.loops = loops
        attempt, total = loops.policy.timeout.attempt, loops.policy.timeout.total
        limits = [seconds for seconds in (attempt, total) if seconds]
        self.timer = home.timer(min(limits)) if limits else None
        self._line: Line | None = None  # most dependencies never need it
        self.line = self._make_line() if is_limited(loops.policy) else None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        return self.home.loop

    @property
    def policy(self) -> Policy:
        """What the calls that are given these go by, whatever follows."""
        return self.loops.policy

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait; from any thread."""
        line = self._line or self._make_line()
        line.cooldown.begin(seconds)
        self.line = line

    @property
    def occupancy(self) -> Occupancy:
        """How the places of this loop are taken."""
        return Occupancy() if self._line is None else self._line.occupancy

    def warm_up(self) -> None:
        """Calls go past the line again, if there is nothing left to wait for."""
        if self._line is not None and not self._line.is_needed:
            self.line = None

    def _make_line(self) -> Line:
        self._line = self.loops.new_line(self.home)
        return self._line

    @property
    def own_line(self) -> Line | None:
        """What calls have waited in, if any ever had to."""
        return self._line


class Loops:
    """The parts of one dependency for each event loop that is there, by one policy.

    Args:
        name: The dependency.
        policy: What is asked for.
        homes: What it shares with other guards on each loop.
        clock: Monotonic seconds.
        shared: The limit of all workers together, if there is one.
    """

    __slots__ = (
        "_clock",
        "_cold_until",
        "_elders",
        "_homes",
        "_name",
        "_parts",
        "_shared",
        "policy",
    )

    def __init__(
        self,
        name: str,
        policy: Policy,
        homes: Homes,
        clock: Callable[[], float],
        shared: SharedLimit | None,
    ) -> None:
        self._name = name
        self.policy = policy
        self._homes = homes
        self._clock = clock
        self._shared = shared
        self._cold_until = _NEVER
        self._parts: list[LoopParts] = []  # loops are few
        self._elders: dict[Home, Line] = {}
        if shared is not None:
            shared.heard_cooldown = self._hear_cooldown

    def by(self, policy: Policy) -> Loops:
        """The same by another policy, for new calls; those under way end by their own."""
        changed = Loops(self._name, policy, self._homes, self._clock, self._shared)
        changed._cold_until = self._cold_until
        changed._elders = self._elders | {
            parts.home: parts.own_line for parts in list(self._parts) if parts.own_line is not None
        }
        if self._shared is not None:
            self._shared.policy = policy.limit
        return changed

    def enter(self, loop: asyncio.AbstractEventLoop) -> tuple[LoopParts, bool]:
        """The parts of a loop, and whether they are new."""
        home = self._homes.of(loop)
        for parts in self._parts:
            if parts.home is home:
                return parts, False
        parts = LoopParts(self, home)
        if (left := self._cold_until - self._clock()) > 0:
            parts.cool_down(left)
        self._parts.append(parts)
        for other in list(self._parts):
            if other.loop.is_closed():
                self._elders.pop(other.home, None)
                with contextlib.suppress(ValueError):  # another thread has done so
                    self._parts.remove(other)
        return parts, True

    def new_line(self, home: Home) -> Line:
        """What the calls of one loop wait in."""
        if (elder := self._elders.get(home)) is not None:
            return elder.by(self.policy, self._shared)
        return Line(self._name, self.policy, self._clock, self._shared)

    @property
    def occupancy(self) -> Occupancy:
        """How the places of all loops are taken; any thread may ask."""
        # In a forked child those of its parent's loops are the parent's.
        found = [parts.occupancy for parts in list(self._parts) if parts.home.thread is not None]
        limits = [each.limit for each in found if each.limit is not None]
        in_use, waiting = (sum(each.in_use for each in found), sum(each.waiting for each in found))
        standstill = max(self._cold_until - self._clock(), 0.0)
        return Occupancy(sum(limits) if limits else None, in_use, waiting, standstill)

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait: no call of any worker goes before."""
        self._cool_down_here(seconds)
        if self._shared is not None:
            self._shared.cool_down(seconds)

    def _hear_cooldown(self, seconds: float) -> None:
        """Another worker was asked to wait; no message counts for more than an answer would."""
        self._cool_down_here(min(seconds, self.policy.retry.max_retry_after))

    def _cool_down_here(self, seconds: float) -> None:
        self._cold_until = max(self._cold_until, self._clock() + seconds)
        for elder in list(self._elders.values()):  # calls may still wait in it
            elder.cooldown.begin(seconds)
        for parts in list(self._parts):
            parts.cool_down(seconds)
