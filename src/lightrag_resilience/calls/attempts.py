"""The attempts of a call: what each waits for, the time it has, and who learns how it ended."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from lightrag_resilience.breakers import Admission, Breaker
from lightrag_resilience.config.policies import Policy
from lightrag_resilience.draining.gate import DrainGate
from lightrag_resilience.errors import (
    AttemptTimeoutError,
    CallRejected,
    CircuitOpenError,
    DeadlineExceededError,
)
from lightrag_resilience.events import Events
from lightrag_resilience.failures.classifier import FailureKind, classify, root_cause
from lightrag_resilience.failures.kinds import symptom
from lightrag_resilience.limits.admission import AdmissionController
from lightrag_resilience.limits.provider_limits import GrantedLimits, on_throttled
from lightrag_resilience.retry import RetryBudget
from lightrag_resilience.timeouts.attempt_timer import Clock, Timer

from .call_context import Call
from .loop_state import LoopState, LoopStates
from .publishing import (
    publish_attempt_failed,
    publish_attempt_rejected,
    publish_call_admitted,
    publish_probe_sent,
)

__all__ = ["Attempts"]

_THROTTLED = FailureKind.THROTTLED


class Attempts:
    """What admits, times and settles the attempts of one dependency's calls.

    `Guard` makes the attempts; streams, blocks and the HTTP transports settle theirs here too.

    Args:
        name: The dependency.
        events: Where each step is published.
        breaker: What refuses attempts while the dependency is down.
        loops: What is kept for each event loop.
        budget: What retries cost, and successes earn.
    """

    __slots__ = (
        "_circuit",
        "_loop_state",
        "_loop_states",
        "breaker",
        "budget",
        "clock",
        "events",
        "gate",
        "granted",
        "name",
        "policy",
        "sleep",
    )

    clock: Clock
    gate: DrainGate
    policy: Policy
    sleep: Callable[[float], Awaitable[None]]

    def __init__(
        self, name: str, events: Events, breaker: Breaker, loops: LoopStates, budget: RetryBudget
    ) -> None:
        self.name = name
        self.events = events
        self.breaker = breaker
        self.budget = budget
        self._circuit = breaker.circuit
        self._loop_states = loops
        self._loop_state: LoopState | None = None
        self.granted: GrantedLimits | None = None
        """What the provider told of its limits, once it did."""

    def update_policy(self, policy: Policy, reason: str = "by hand") -> None:
        """Go on by another policy, from any thread; calls under way end by their own."""
        self.policy = policy
        self.breaker.update_policy(policy.effective_breaker, reason)
        self.budget.resize(policy.retry.budget)
        self._loop_states = self._loop_states.with_policy(policy)
        self._loop_state = None

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait: no call of any worker goes before."""
        self._loop_states.cool_down(seconds)

    # ------------------------------------------------------------------ before an attempt

    def prepare(self, call: Call) -> LoopState:
        """Find the limits and timers of the running loop."""
        loops = self._loop_states
        parts, is_new = loops.for_loop(asyncio.get_running_loop())
        if is_new:
            self.breaker.begin()
        self._loop_state = call.loop_state = parts
        if (
            loops is not self._loop_states
        ):  # changed by another thread meanwhile: not for the next call
            self._loop_state = None
        call.failure = None
        return parts

    def _rejection(self, wait: float) -> CircuitOpenError:
        publish_attempt_rejected(self, CircuitOpenError)
        return CircuitOpenError(self.name, None if wait == math.inf else wait, self._circuit.reason)

    async def admit(
        self, call: Call, parts: LoopState, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Timer | None:
        """Wait for all that a call may have to wait for, and let its time run."""
        call.admission = self._circuit.shared_admission or await self._acquire_admission()
        if parts.admission is not None:
            await self._wait_for_capacity(call, parts.admission, (args, kwargs))
        return self.start(call, parts)

    def start(self, call: Call, parts: LoopState) -> Timer | None:
        """Let the time of an attempt run."""
        call.started = now = self.clock()
        timer = parts.timer
        if timer is not None:
            if parts.admission is not None or call.deadline is not None:
                left = max(self.remaining(call), 0.0)
                if left < timer.seconds:  # one of its own: the deadline cuts this attempt short
                    timer = Timer(left, timer.loop, self.clock)
            timer.start(call, now)
        call.timer = timer
        return timer

    def remaining(self, call: Call) -> float:
        """Seconds to the deadline of a call."""
        total = call.loop_state.policy.timeout.total
        return math.inf if total is None else call.began + total - self.clock()

    async def _acquire_admission(self) -> Admission:
        breaker = self.breaker
        try:
            admission = await breaker.acquire_async()
        except CallRejected as refusal:
            publish_attempt_rejected(self, type(refusal))
            raise
        if admission is not self._circuit.shared_admission:
            publish_probe_sent(self)
        return admission

    async def _wait_for_capacity(
        self,
        call: Call,
        line: AdmissionController,
        question: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        """Wait until the call may be sent, then ask the breaker again."""
        try:
            if line.try_acquire(call, question):
                publish_call_admitted(self, call, 0.0)
                return
            began = self.clock()
            async with self.gate.interruptible(self.name):
                waited = await line.acquire(call, question, lambda: self.remaining(call))
        except BaseException as refusal:
            self.breaker.release(call.admission)
            if isinstance(refusal, CallRejected):
                publish_attempt_rejected(self, type(refusal))
            raise
        publish_call_admitted(self, call, self.clock() - began)
        if waited and not self._circuit.is_valid(call.admission):
            try:
                call.admission = await self._acquire_admission()
            except BaseException:
                line.abandon(call)
                raise

    async def pause(self, seconds: float) -> None:
        """Wait before another attempt; a drain ends it with a `ShuttingDownError`."""
        async with self.gate.interruptible(self.name):
            await self.sleep(seconds)

    # ------------------------------------------------------------------ after an attempt

    def timeout_error(self, call: Call, cause: BaseException, reason: str = "") -> Exception:
        """The error for a call whose own time is up; `reason` says which time of an attempt.

        Its cause, which tells whether anything was sent, is set here: the verdict comes before
        `raise`.
        """
        total = call.loop_state.policy.timeout.total
        error: Exception
        if total is not None and self.remaining(call) <= 0:
            error = DeadlineExceededError(self.name, None, f"after {total:g} s")
        else:
            if not reason and call.timer is not None:
                reason = f"after {call.timer.seconds:g} s"
            error = AttemptTimeoutError(self.name, None, reason)
        error.__cause__ = cause
        return error

    def _settle_raised(self, call: Call, error: BaseException, timer: Timer | None) -> None:
        """An attempt raised; where that was the end of its time, this raises what says so."""
        if timer is not None and timer.stop(call) and isinstance(error, asyncio.CancelledError):
            timeout = self.timeout_error(call, error)
            self.settle_error(call, timeout)
            raise timeout
        self.settle_error(call, error)

    def settle_success(
        self, call: Call, duration: float | None = None, answer: object = None
    ) -> None:
        """An attempt succeeded, to its end; `duration` is a stream's wait for its first item."""
        budget = self.budget
        if budget.tokens < budget.capacity:
            budget.earn()
        line, succeeded = call.loop_state.admission, self.events.succeeded
        if line is None and succeeded is None and self._circuit.ignores_successes:
            return  # before the clock is asked: nobody wants to know
        tokens = 0
        if duration is None:
            duration = self.clock() - call.started
        if line is not None:
            tokens = line.release(call, None, duration, answer)
            call.loop_state.drop_idle_admission()
        self.breaker.on_success(call.admission, duration)
        if succeeded is not None:
            succeeded(self.name, duration, tokens)

    def settle_error(self, call: Call, error: BaseException) -> None:
        """An attempt raised: the breaker learns of it where the dependency is to blame."""
        if not isinstance(error, Exception) or isinstance(error, CallRejected):
            self.settle_without_verdict(call)
            return
        failure = classify(error)
        duration = self.clock() - call.started
        is_cut_short = _is_cut_short(call, error, duration)
        if (line := call.loop_state.admission) is not None:
            line.release(call, failure, duration, is_cut_short=is_cut_short)
        if failure.kind is _THROTTLED:
            on_throttled(self, error, failure)
        if is_cut_short:
            self.breaker.release(call.admission)
        elif failure.counts:
            self.breaker.on_failure(call.admission, duration, symptom(root_cause(error), failure))
        else:
            seen, admission = symptom(root_cause(error), failure), call.admission
            pause = (
                0.0 if admission is self._circuit.shared_admission else failure.pause
            )  # of a probe
            self.breaker.on_uncounted_failure(admission, seen, pause)
        call.failure = failure
        if self.events.subscribed:
            publish_attempt_failed(self, error, failure, duration)

    def settle_without_verdict(self, call: Call) -> None:
        """An attempt was given up by its caller, or never reached the dependency."""
        if (line := call.loop_state.admission) is not None:
            line.release_cancelled(call)
        self.breaker.release(call.admission)


def _is_cut_short(call: Call, error: Exception, duration: float) -> bool:
    """Whether the deadline gave an attempt less time than the policy gives attempts."""
    timer = call.loop_state.timer
    return isinstance(error, DeadlineExceededError) and (
        timer is not None and duration < timer.seconds
    )
