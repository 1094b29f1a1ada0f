"""The attempts of a call: what admits, times and settles each of them."""

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
from lightrag_resilience.limits.bulkhead import Occupancy
from lightrag_resilience.limits.provider_limits import GrantedLimits, on_throttled
from lightrag_resilience.limits.token_usage import (
    WITHOUT_USAGE,
    CountTokens,
    answer_tokens,
    text_tokens,
)
from lightrag_resilience.retry import RetryBudget
from lightrag_resilience.timeouts.attempt_timer import Clock, DeadlineTimer, Timer

from .call_context import Call, current_call
from .loop_state import LoopState, LoopStates
from .publishing import (
    publish_attempt_failed,
    publish_attempt_rejected,
    publish_call_admitted,
    publish_probe_sent,
    publish_tokens,
    publish_wasted_tokens,
)

__all__ = ["Attempts"]

_THROTTLED = FailureKind.THROTTLED
# Seconds between callers that waited for the same circuit: at once, all would be answered as late
# as the last of them, and a provider that has just returned would get them all together.
_STAGGER, _LONGEST_STAGGER = 0.05, 1.0


class Attempts:
    """What admits, times and settles the attempts of one dependency's calls.

    `Guard` makes the attempts; streams, blocks and the HTTP transports settle theirs here too.

    Args:
        name: The dependency.
        events: Where each step is published.
        breaker: Rejects attempts while the dependency is down.
        loop_states: Timers and limits for each event loop.
        budget: Retries spend it, successes earn it.
    """

    __slots__ = (
        "_circuit",
        "_loop_state",
        "_loop_states",
        "breaker",
        "budget",
        "clock",
        "count_tokens",
        "demanded_at",
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
        self,
        name: str,
        events: Events,
        breaker: Breaker,
        loop_states: LoopStates,
        budget: RetryBudget,
    ) -> None:
        self.name = name
        self.events = events
        self.breaker = breaker
        self.budget = budget
        self._circuit = breaker.circuit
        self._loop_states = loop_states
        # That of the loop used last: nearly all calls of a guard come from one loop.
        self._loop_state: LoopState | None = None
        self.demanded_at = -math.inf
        """Monotonic seconds at which the last call began that the circuit rejected."""
        self.granted: GrantedLimits | None = None
        """Limits that the provider named in its answers; None until it did."""
        self.count_tokens: CountTokens = text_tokens
        """Estimates the tokens of a call, before it is sent."""

    def update_policy(self, policy: Policy, reason: str = "by hand") -> None:
        """Use another policy for new calls, from any thread; calls under way keep theirs."""
        self.policy = policy
        self.breaker.update_policy(policy.effective_breaker, reason)
        self.budget.resize(policy.retry.budget)
        self._loop_states = self._loop_states.with_policy(policy)
        self._loop_state = None

    def cool_down(self, seconds: float) -> None:
        """Let no worker send a call for so long, as the provider asked."""
        self._loop_states.cool_down(seconds)

    @property
    def occupancy(self) -> Occupancy:
        """Permits in use and calls in the queue, in this process."""
        return self._loop_states.occupancy

    @property
    def loop_in_use(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of the last call; None where it is unknown or cannot run here."""
        loop_state = self._loop_state
        if loop_state is None or loop_state.loop_timers.thread is None:
            return None
        return None if loop_state.loop.is_closed() else loop_state.loop

    # ------------------------------------------------------------------ before an attempt

    def prepare(self, call: Call) -> LoopState:
        """Give a call the limits and timers of the running loop, before each attempt."""
        loop_states = self._loop_states
        loop_state, is_new = loop_states.for_loop(asyncio.get_running_loop())
        if is_new:
            self.breaker.begin()
        self._loop_state = call.loop_state = loop_state
        if loop_states is not self._loop_states:
            # Another thread has changed the policy since: the next call must not have this state.
            self._loop_state = None
        call.failure = None
        return loop_state

    def _rejection(self, wait: float) -> CircuitOpenError:
        publish_attempt_rejected(self, CircuitOpenError)
        return CircuitOpenError(self.name, None if wait == math.inf else wait, self._circuit.reason)

    async def admit(
        self, call: Call, loop_state: LoopState, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Timer | None:
        """Wait for the breaker's admission and for capacity, then start the timer.

        Raises:
            CallRejected: The call may not be sent, or not in time.
            DeadlineExceededError: The deadline of its caller has passed already.
        """
        if (deadline := call.caller_deadline) is not None and deadline.left <= 0:
            raise deadline.error(self.name)
        call.admission = self._circuit.shared_admission or await self._acquire_admission(call.began)
        if loop_state.controller is not None:
            await self._wait_for_capacity(call, loop_state.controller, (args, kwargs))
        return self.start(call, loop_state)

    def start(self, call: Call, loop_state: LoopState) -> Timer | None:
        """Start the timer of an attempt."""
        call.started = now = self.clock()
        timer = loop_state.timer
        if (deadline := call.caller_deadline) is not None:
            left = max(self.remaining(call), 0.0)
            seconds = left if timer is None else min(timer.seconds, left)
            timer = DeadlineTimer(seconds, now + deadline.left, loop_state.loop, self.clock)
            timer.start(call, now)
        elif timer is not None:
            if loop_state.controller is not None or call.attempt > 1:  # it has waited
                left = max(self.remaining(call), 0.0)
                if left < timer.seconds:
                    # The deadline cuts this attempt short. A shared timer serves one duration.
                    timer = Timer(left, timer.loop, self.clock)
            timer.start(call, now)
        call.timer = timer
        return timer

    def remaining(self, call: Call) -> float:
        """Seconds to the deadline of a call: its policy's or its caller's, whichever is first."""
        total = call.loop_state.policy.timeout.total
        left = math.inf if total is None else call.began + total - self.clock()
        deadline = call.caller_deadline
        return left if deadline is None else min(left, deadline.left)

    def ends_at(self, call: Call) -> float | None:
        """Monotonic seconds of that deadline; None without one."""
        left = self.remaining(call)
        return None if left == math.inf else self.clock() + left

    async def _acquire_admission(self, began: float) -> Admission:
        breaker = self.breaker
        try:
            admission = await breaker.acquire_async()
        except CallRejected as rejection:
            self.demanded_at = max(self.demanded_at, began)
            publish_attempt_rejected(self, type(rejection))
            raise
        if admission is not self._circuit.shared_admission:
            publish_probe_sent(self)
        return admission

    async def _wait_for_capacity(
        self,
        call: Call,
        controller: AdmissionController,
        call_arguments: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        """Wait until the call may be sent.

        After a wait the breaker's admission may be void: it may have opened meanwhile.
        """
        try:
            if controller.try_acquire(call, call_arguments):
                publish_call_admitted(self, call, 0.0)
                return
            began = self.clock()
            async with self.gate.interruptible(self.name):
                waited = await controller.acquire(
                    call, call_arguments, lambda: self.remaining(call)
                )
        except BaseException as error:
            self.breaker.release(call.admission)
            if isinstance(error, CallRejected):
                publish_attempt_rejected(self, type(error))
            raise
        publish_call_admitted(self, call, self.clock() - began)
        if waited and not self._circuit.is_valid(call.admission):
            try:
                call.admission = await self._acquire_admission(call.began)
            except BaseException:
                controller.abandon(call)
                raise

    async def send_probe(
        self,
        probe: Callable[[], Awaitable[object]],
        admission: Admission,
        seconds: float,
    ) -> Exception | None:
        """Make one attempt that is no user's call, with a permit of its own.

        It goes through limits, timer, verdict and events as any attempt does.

        Args:
            probe: Makes the request.
            admission: The breaker's permit; it is used or released.
            seconds: After which it is cancelled.

        Returns:
            The error by which it failed; None where it succeeded.

        Raises:
            CallRejected: It was not sent, as a limit has no room for it.
        """
        call = Call()
        call.begin(self, None, self.clock())
        call.admission = admission
        token = current_call.set(call)
        try:
            loop_state = self.prepare(call)
            if loop_state.controller is not None:
                await self._wait_for_capacity(call, loop_state.controller, ((), {}))
            call.started = now = self.clock()
            call.timer = timer = Timer(seconds, loop_state.loop, self.clock)
            timer.start(call, now)
            publish_probe_sent(self, "background")
            try:
                result = await probe()
            except BaseException as error:
                self._settle_raised(call, error, timer)
                raise
            timer.stop(call)
            self.settle_success(call, None, result)
        except CallRejected:
            raise
        except Exception as error:
            if call.failure is None:
                raise
            return error
        else:
            return None
        finally:
            call.guard = None
            current_call.reset(token)

    async def pause(self, seconds: float) -> None:
        """Wait before another attempt; a drain ends it with a `ShuttingDownError`."""
        async with self.gate.interruptible(self.name):
            await self.sleep(seconds)

    async def wait_for_recovery(self, seconds: float) -> None:
        """Wait before another call, of an open circuit at most until it closes.

        Raises:
            ShuttingDownError: A drain begins.
        """
        async with self.gate.interruptible(self.name):
            if self.breaker.outage is None:
                await self.sleep(seconds)
            else:
                position = await self.breaker.wait_until_closed(seconds)
                if position:
                    await self.sleep(min(position * _STAGGER, _LONGEST_STAGGER))

    # ------------------------------------------------------------------ after an attempt

    def timeout_error(self, call: Call, cause: BaseException, reason: str = "") -> Exception:
        """The error for a call whose timer fired; `reason` says which limit an attempt passed.

        Its cause is set here, as the error is classified before it is raised, and the cause shows
        whether anything was sent.
        """
        total = call.loop_state.policy.timeout.total
        error: Exception
        deadline = call.caller_deadline
        if deadline is not None and deadline.left <= 0:
            error = deadline.error(self.name)
        elif total is not None and self.remaining(call) <= 0:
            error = DeadlineExceededError(self.name, None, f"after {total:g} s")
        else:
            if not reason and call.timer is not None:
                reason = f"after {call.timer.seconds:g} s"
            error = AttemptTimeoutError(self.name, None, reason)
        error.__cause__ = cause
        return error

    def _settle_raised(self, call: Call, error: BaseException, timer: Timer | None) -> None:
        """Settle an attempt that raised.

        Raises:
            AttemptTimeoutError: Its own timer cancelled it.
            DeadlineExceededError: The same, at the deadline of its call.
        """
        if timer is not None and timer.stop(call) and isinstance(error, asyncio.CancelledError):
            timeout = self.timeout_error(call, error)
            self.settle_error(call, timeout)
            raise timeout
        self.settle_error(call, error)

    def settle_success(
        self, call: Call, duration: float | None = None, answer: object = None
    ) -> None:
        """Settle an attempt that succeeded, to the end of its stream if it has one.

        Args:
            call: Its call.
            duration: Seconds that a stream's first item took; None measures from its start to now.
            answer: Its result, or what a stream said of its tokens.
        """
        budget = self.budget
        if budget.tokens < budget.capacity:
            budget.earn()
        controller, succeeded = call.loop_state.controller, self.events.succeeded
        if controller is None and succeeded is None and self._circuit.ignores_successes:
            return  # before the clock is read: nothing uses the duration
        tokens = 0
        if duration is None:
            duration = self.clock() - call.started
        if controller is not None:
            tokens = controller.release(call, None, duration, answer)
            call.loop_state.drop_idle_controller()
        self.breaker.on_success(call.admission, duration)
        if succeeded is not None:
            if not tokens and (answer.__class__ not in WITHOUT_USAGE or hasattr(call, "tokens")):
                tokens = answer_tokens(call, answer)
            succeeded(self.name, duration, tokens)
            if tokens:
                publish_tokens(self, call, "answer", tokens)

    def settle_error(self, call: Call, error: BaseException) -> None:
        """Settle an attempt that raised: the breaker counts it if the dependency is to blame."""
        if not isinstance(error, Exception) or isinstance(error, CallRejected):
            self.settle_without_verdict(call)
            if self.events.counts_tokens and not isinstance(error, Exception):
                publish_wasted_tokens(self, call)
            return
        failure = classify(error)
        duration = self.clock() - call.started
        is_cut_short = _is_cut_short(call, error, duration)
        if (controller := call.loop_state.controller) is not None:
            controller.release(call, failure, duration, is_cut_short=is_cut_short)
        if failure.kind is _THROTTLED:
            on_throttled(self, error, failure)
        if is_cut_short:
            self.breaker.release(call.admission)  # less time than the policy grants: no verdict
        elif failure.counts:
            self.breaker.on_failure(call.admission, duration, symptom(root_cause(error), failure))
        else:
            seen, admission = symptom(root_cause(error), failure), call.admission
            is_probe = admission is not self._circuit.shared_admission
            pause = failure.pause if is_probe else 0.0
            self.breaker.on_uncounted_failure(admission, seen, pause)
        call.failure = failure
        if self.events.subscribed:
            publish_attempt_failed(self, error, failure, duration)
        if self.events.counts_tokens:
            publish_wasted_tokens(self, call, failure)

    def settle_without_verdict(self, call: Call) -> None:
        """Settle an attempt that its caller gave up, or that never reached the dependency."""
        if (controller := call.loop_state.controller) is not None:
            controller.release_cancelled(call)
        self.breaker.release(call.admission)


def _is_cut_short(call: Call, error: Exception, duration: float) -> bool:
    """Whether a deadline left an attempt less time than the policy gives attempts."""
    timer = call.loop_state.timer
    return isinstance(error, DeadlineExceededError) and (timer is None or duration < timer.seconds)
