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

_LONG_AGO = -math.inf


class LoopState:
    """The timer and the limits of one dependency on one event loop, by one policy.

    Attributes:
        loop_timers: The loop, its thread, and the timers of all dependencies on it.
        timer: Ends an attempt, or a whole call where that is shorter; None without a timeout.
        controller: What a call waits for before it is sent; None while there is nothing to wait
            for. Not the breaker's admission, which is `Call.admission`.
        loop_states: Those of all loops.
    """

    __slots__ = ("_controller", "controller", "loop_states", "loop_timers", "timer")

    def __init__(self, loop_states: LoopStates, loop_timers: LoopTimers) -> None:
        self.loop_timers = loop_timers
        self.loop_states = loop_states
        timeout = loop_states.policy.timeout
        limits = [seconds for seconds in (timeout.attempt, timeout.total) if seconds]
        self.timer = loop_timers.timer(min(limits)) if limits else None
        self._controller: AdmissionController | None = None  # most dependencies never need it
        self.controller = self._make_controller() if is_limited(loop_states.policy) else None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        return self.loop_timers.loop

    @property
    def policy(self) -> Policy:
        """The policy of the calls that have this state, also after the guard got another."""
        return self.loop_states.policy

    def cool_down(self, seconds: float) -> None:
        """Send no call for so long, as the provider asked; from any thread."""
        controller = self._controller or self._make_controller()
        controller.cooldown.begin(seconds)
        self.controller = controller

    @property
    def occupancy(self) -> Occupancy:
        """Permits in use and calls in the queue, on this loop."""
        return Occupancy() if self._controller is None else self._controller.occupancy

    def drop_idle_controller(self) -> None:
        """Let calls bypass the controller again, once it has nothing to wait for."""
        if self._controller is not None and not self._controller.is_needed:
            self.controller = None

    def _make_controller(self) -> AdmissionController:
        self._controller = self.loop_states.new_controller(self.loop_timers)
        return self._controller

    @property
    def known_controller(self) -> AdmissionController | None:
        """The controller in use or dropped as idle; None where no call ever needed one."""
        return self._controller


class LoopStates:
    """The states of one dependency on all event loops, by one policy.

    Args:
        name: The dependency.
        policy: Its limits and timeouts.
        loop_timers: The loops and timers that all guards of a registry share.
        clock: Monotonic seconds.
        shared: The rate limit of all workers together, if there is one.
    """

    __slots__ = (
        "_clock",
        "_cooldown_until",
        "_loop_timers",
        "_name",
        "_previous_controllers",
        "_shared",
        "_states",
        "policy",
    )

    def __init__(
        self,
        name: str,
        policy: Policy,
        loop_timers: LoopTimersRegistry,
        clock: Callable[[], float],
        shared: SharedLimiter | None,
    ) -> None:
        self._name = name
        self.policy = policy
        self._loop_timers = loop_timers
        self._clock = clock
        self._shared = shared
        self._cooldown_until = _LONG_AGO
        self._states: list[LoopState] = []  # loops are few
        self._previous_controllers: dict[LoopTimers, AdmissionController] = {}
        if shared is not None:
            shared.on_cooldown = self._receive_cooldown

    def with_policy(self, policy: Policy) -> LoopStates:
        """The states for new calls by another policy; calls under way keep the present ones."""
        changed = LoopStates(self._name, policy, self._loop_timers, self._clock, self._shared)
        changed._cooldown_until = self._cooldown_until
        # The new controllers take over the cool-down, and each limit that stays the same.
        changed._previous_controllers = self._previous_controllers | {
            state.loop_timers: state.known_controller
            for state in list(self._states)
            if state.known_controller is not None
        }
        if self._shared is not None:
            self._shared.policy = policy.limit
        return changed

    def for_loop(self, loop: asyncio.AbstractEventLoop) -> tuple[LoopState, bool]:
        """The state of a loop, and whether it is new."""
        loop_timers = self._loop_timers.for_loop(loop)
        for state in self._states:
            if state.loop_timers is loop_timers:
                return state, False
        state = LoopState(self, loop_timers)
        if (left := self._cooldown_until - self._clock()) > 0:
            state.cool_down(left)
        self._states.append(state)
        for other in list(self._states):
            if other.loop.is_closed():
                self._previous_controllers.pop(other.loop_timers, None)
                with contextlib.suppress(ValueError):  # another thread has done so
                    self._states.remove(other)
        return state, True

    def new_controller(self, loop_timers: LoopTimers) -> AdmissionController:
        """An admission controller for the calls of one loop."""
        if (previous := self._previous_controllers.get(loop_timers)) is not None:
            return previous.with_policy(self.policy, self._shared)
        return AdmissionController(self._name, self.policy, self._clock, self._shared)

    @property
    def occupancy(self) -> Occupancy:
        """Permits in use and calls in the queue, on all loops; from any thread."""
        # In a forked child the loops of its parent have no thread: their calls are not here.
        found = [
            state.occupancy for state in list(self._states) if state.loop_timers.thread is not None
        ]
        limits = [each.limit for each in found if each.limit is not None]
        in_use, waiting = (sum(each.in_use for each in found), sum(each.waiting for each in found))
        cooldown_remaining = max(self._cooldown_until - self._clock(), 0.0)
        return Occupancy(sum(limits) if limits else None, in_use, waiting, cooldown_remaining)

    def cool_down(self, seconds: float) -> None:
        """Let no worker send a call for so long, as the provider asked."""
        self._cool_down_locally(seconds)
        if self._shared is not None:
            self._shared.cool_down(seconds)

    def _receive_cooldown(self, seconds: float) -> None:
        # A message from another worker may delay calls no longer than a provider's answer may.
        self._cool_down_locally(min(seconds, self.policy.retry.max_retry_after))

    def _cool_down_locally(self, seconds: float) -> None:
        self._cooldown_until = max(self._cooldown_until, self._clock() + seconds)
        for previous in list(self._previous_controllers.values()):  # calls may still wait in it
            previous.cooldown.begin(seconds)
        for state in list(self._states):
            state.cool_down(seconds)
