"""What a guard keeps for each event loop: nothing that waits may be shared between loops."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from lightrag_resilience.config.policies import Policy
from lightrag_resilience.limits.admission import AdmissionController, is_limited
from lightrag_resilience.limits.bulkhead import Occupancy
from lightrag_resilience.limits.rate_limiter import SharedLimiter
from lightrag_resilience.timeouts.loop_timers import LoopTimers, LoopTimersRegistry

__all__ = ["LoopState", "LoopStates"]

_NEVER = -math.inf


class LoopState:
    """Timers, rate limit and places of one dependency on one event loop; None where not asked for.

    Attributes:
        loop_timers: The loop, and its thread.
        timer: Ends an attempt, or a whole call where that is shorter.
        admission: What a call waits for before it is sent; None while there is nothing to wait for.
        loop_states: The parts of all loops.
    """

    __slots__ = ("_admission", "admission", "loop_states", "loop_timers", "timer")

    def __init__(self, loops: LoopStates, home: LoopTimers) -> None:
        self.loop_timers = home
        self.loop_states = loops
        attempt, total = loops.policy.timeout.attempt, loops.policy.timeout.total
        limits = [seconds for seconds in (attempt, total) if seconds]
        self.timer = home.timer(min(limits)) if limits else None
        self._admission: AdmissionController | None = None  # most dependencies never need it
        self.admission = self._make_admission() if is_limited(loops.policy) else None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        return self.loop_timers.loop

    @property
    def policy(self) -> Policy:
        """What the calls that are given these go by, whatever follows."""
        return self.loop_states.policy

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait; from any thread."""
        line = self._admission or self._make_admission()
        line.cooldown.begin(seconds)
        self.admission = line

    @property
    def occupancy(self) -> Occupancy:
        """How the places of this loop are taken."""
        return Occupancy() if self._admission is None else self._admission.occupancy

    def drop_idle_admission(self) -> None:
        """Calls go past the line again, if there is nothing left to wait for."""
        if self._admission is not None and not self._admission.is_needed:
            self.admission = None

    def _make_admission(self) -> AdmissionController:
        self._admission = self.loop_states.new_admission(self.loop_timers)
        return self._admission

    @property
    def own_admission(self) -> AdmissionController | None:
        """What calls have waited in, if any ever had to."""
        return self._admission


class LoopStates:
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
        "_cooldown_until",
        "_name",
        "_previous_admissions",
        "_shared",
        "_states",
        "_timers",
        "policy",
    )

    def __init__(
        self,
        name: str,
        policy: Policy,
        homes: LoopTimersRegistry,
        clock: Callable[[], float],
        shared: SharedLimiter | None,
    ) -> None:
        self._name = name
        self.policy = policy
        self._timers = homes
        self._clock = clock
        self._shared = shared
        self._cooldown_until = _NEVER
        self._states: list[LoopState] = []  # loops are few
        self._previous_admissions: dict[LoopTimers, AdmissionController] = {}
        if shared is not None:
            shared.on_cooldown = self._receive_cooldown

    def with_policy(self, policy: Policy) -> LoopStates:
        """The same by another policy, for new calls; those under way end by their own."""
        changed = LoopStates(self._name, policy, self._timers, self._clock, self._shared)
        changed._cooldown_until = self._cooldown_until
        changed._previous_admissions = self._previous_admissions | {
            parts.loop_timers: parts.own_admission
            for parts in list(self._states)
            if parts.own_admission is not None
        }
        if self._shared is not None:
            self._shared.policy = policy.limit
        return changed

    def for_loop(self, loop: asyncio.AbstractEventLoop) -> tuple[LoopState, bool]:
        """The parts of a loop, and whether they are new."""
        home = self._timers.for_loop(loop)
        for parts in self._states:
            if parts.loop_timers is home:
                return parts, False
        parts = LoopState(self, home)
        if (left := self._cooldown_until - self._clock()) > 0:
            parts.cool_down(left)
        self._states.append(parts)
        for other in list(self._states):
            if other.loop.is_closed():
                self._previous_admissions.pop(other.loop_timers, None)
                with contextlib.suppress(ValueError):  # another thread has done so
                    self._states.remove(other)
        return parts, True

    def new_admission(self, home: LoopTimers) -> AdmissionController:
        """What the calls of one loop wait in."""
        if (elder := self._previous_admissions.get(home)) is not None:
            return elder.with_policy(self.policy, self._shared)
        return AdmissionController(self._name, self.policy, self._clock, self._shared)

    @property
    def occupancy(self) -> Occupancy:
        """How the places of all loops are taken; any thread may ask."""
        # In a forked child those of its parent's loops are the parent's.
        found = [
            parts.occupancy for parts in list(self._states) if parts.loop_timers.thread is not None
        ]
        limits = [each.limit for each in found if each.limit is not None]
        in_use, waiting = (sum(each.in_use for each in found), sum(each.waiting for each in found))
        standstill = max(self._cooldown_until - self._clock(), 0.0)
        return Occupancy(sum(limits) if limits else None, in_use, waiting, standstill)

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait: no call of any worker goes before."""
        self._cool_down_locally(seconds)
        if self._shared is not None:
            self._shared.cool_down(seconds)

    def _receive_cooldown(self, seconds: float) -> None:
        """Another worker was asked to wait; no message counts for more than an answer would."""
        self._cool_down_locally(min(seconds, self.policy.retry.max_retry_after))

    def _cool_down_locally(self, seconds: float) -> None:
        self._cooldown_until = max(self._cooldown_until, self._clock() + seconds)
        for elder in list(self._previous_admissions.values()):  # calls may still wait in it
            elder.cooldown.begin(seconds)
        for parts in list(self._states):
            parts.cool_down(seconds)
