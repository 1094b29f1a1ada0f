"""The guard of one dependency: the order of the policies around a call, and nothing else.

A call goes through these steps; each policy is a file of its own and knows none of the others::

    deadline ─▶ ┌ retry ──────────────────────────────────────────────────────┐
                │ breaker ─▶ rate limit ─▶ place ─▶ breaker ─▶ timeout ─▶ call │
                └──────────────── outcome ◀── class of failure ◀──────────────┘
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from threading import get_ident  # names alone, where they are on the way of each call
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, Self, TypeVar, overload

from lightrag_resilience.breakers import Breaker
from lightrag_resilience.calls.call_context import Call, current_call, owned_by_a_guard
from lightrag_resilience.calls.capacity import ask_breaker, wait_in_line
from lightrag_resilience.calls.lateness import timeout_error, was_cut_short
from lightrag_resilience.calls.loop_state import LoopParts, Loops
from lightrag_resilience.calls.publishing import tell_attempt, tell_failure, tell_refusal
from lightrag_resilience.config.policies import Policy
from lightrag_resilience.draining.gate import Gate
from lightrag_resilience.errors import CallRejected, CircuitOpenError, UnsupportedCallError
from lightrag_resilience.events import Events
from lightrag_resilience.failures.classifier import FailureKind, classify, root_cause
from lightrag_resilience.failures.kinds import symptom
from lightrag_resilience.limits.bulkhead import Occupancy
from lightrag_resilience.limits.provider_limits import GrantedLimits, apply_throttling
from lightrag_resilience.limits.rate_limiter import SharedLimit
from lightrag_resilience.retry import is_retryable
from lightrag_resilience.retry_budget import RetryBudget, alone
from lightrag_resilience.runtime.callables import as_coroutine_function, is_stream
from lightrag_resilience.runtime.current_task import current_task
from lightrag_resilience.streams.guarded_stream import GuardedStream
from lightrag_resilience.timeouts.attempt_timer import Clock, Timer
from lightrag_resilience.timeouts.loop_timers import Homes

from .block import begin_block, end_block
from .run_retries import try_again

__all__ = ["Guard"]

_PLAIN = frozenset({str, dict, list, int, float, bool, tuple, bytes, type(None)})  # no streams
_THROTTLED = FailureKind.THROTTLED
P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """Breaker, retry, limits and timeouts of one dependency, for every kind of callable.

    As a context manager (``async with guard:``) it does all but retry: a block cannot be run
    again. Calls made inside a call of the same guard pass straight through.

    Args:
        name: The dependency, such as ``llm.openai``.
        policy: What to do; durations are seconds.
        base: The policy that was given in code, where variables made `policy` of it.
        events: Where each step is announced.
        breaker: One that is made already, such as one that all workers share.
        limit: What all workers may send together.
        workers: How many there are, this process included; they share the retry budget.
        clock: Monotonic seconds.
        sleep: Waits so many seconds between attempts.
        gate: Lets calls in until a drain begins.
        homes: What it shares with other guards on each event loop.
    """

    __slots__ = (
        "__weakref__",
        "_circuit",
        "_loops",
        "_parts",
        "base",
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

    def __init__(  # noqa: PLR0913 - all but two by name
        self,
        name: str,
        policy: Policy,
        *,
        base: Policy | None = None,
        events: Events | None = None,
        breaker: Breaker | None = None,
        limit: SharedLimit | None = None,
        workers: Callable[[], int] = alone,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        gate: Gate | None = None,
        homes: Homes | None = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.base = base
        self.events = events or Events()
        self.breaker = breaker or Breaker(name, policy.circuit, events=self.events, clock=clock)
        self.budget = RetryBudget(policy.retry.budget, workers)
        self._circuit = self.breaker.circuit
        self.clock: Clock = clock
        self.sleep = sleep
        self.gate = gate or Gate()
        self._loops = Loops(name, policy, homes or Homes(clock), clock, limit)
        self._parts: LoopParts | None = None
        self.granted: GrantedLimits | None = None
        """What the provider told of its limits, once it did."""

    def __repr__(self) -> str:
        return f"<Guard {self.name!r}: {self.breaker.state.value}>"

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """A guard stands for the dependency in this process: its copy is itself."""
        return self

    @overload
    async def call(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def call(
        self, function: Callable[P, AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> GuardedStream[R]: ...
    @overload
    async def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of any kind under this guard; a sync one runs in a thread.

        Raises:
            CallRejected: It was not sent: circuit open, rate limit used up, or queue full.
            AttemptTimeoutError: The last attempt took too long.
            DeadlineExceededError: All attempts together took too long.
            Exception: What the function raised in its last attempt.
        """
        return await self.run(as_coroutine_function(function), args, kwargs)

    def change(self, policy: Policy, reason: str = "by hand") -> None:
        """Go on by another policy, from any thread; calls under way end by their own."""
        self.policy = policy
        self.breaker.change(policy.circuit, reason)
        self.budget.resize(policy.retry.budget)
        self._loops = self._loops.by(policy)
        self._parts = None

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait: no call of any worker goes before."""
        self._loops.cool_down(seconds)

    @property
    def occupancy(self) -> Occupancy:
        """How the places for calls at once are taken, in this process."""
        return self._loops.occupancy

    def refuse_if_open(self) -> None:
        """Raise what a call would get at once, without making one.

        Raises:
            CircuitOpenError: The circuit is open and its next probe is not due.
        """
        if (wait := self._circuit.open_until - self.clock()) > 0:
            raise self._refusal(wait)

    # ------------------------------------------------------------------ the way of one call

    async def run(  # noqa: C901, PLR0912, PLR0915 - the first attempt is written out in it
        self,
        function: Callable[..., Coroutine[Any, Any, R]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        once: bool = False,
        idempotent: bool | None = None,
    ) -> R:
        """As `call`, for a coroutine function only.

        `once` leaves retries to the caller; `idempotent` knows better than the policy.
        """
        around = current_call  # of an imported name each method would be bound anew
        parent = around.get()
        if parent is not None and parent.is_within(self):
            return await function(*args, **kwargs)
        gate = self.gate
        if gate.is_closed and not owned_by_a_guard():
            gate.check(self.name, self.events)
        now = self.clock()
        if (wait := self._circuit.open_until - now) > 0:
            raise self._refusal(wait)
        # From here new_call(), prepare(), enter() and _attempt() are written out: each function
        # more, even an empty one, is 2 % of what a guard costs.
        call = Call()
        call.name = self.name
        call.guard = self
        call.parent = parent
        call.began = now
        call.deadline = call.failure = None
        call.aside = 0
        call.gaps = None
        if idempotent is not None:
            call.idempotent = idempotent
        gate.running[call] = None
        token = around.set(call)
        try:
            parts = self._parts
            if (  # not on the running loop; to name that, Python 3.11 asks the kernel who we are
                parts is None
                or (home := parts.home).thread != get_ident()
                or current_task(home.loop) is None
            ):
                parts = self.prepare(call)
            call.parts = parts
            admission = self._circuit.standing
            if admission is None or parts.line is not None:
                timer = await self.enter(call, parts, args, kwargs)
            else:
                call.admission = admission
                call.started = now
                call.timer = timer = parts.timer
                if timer is not None:
                    timer.start(call, now)
            try:
                result: Any = await function(*args, **kwargs)
                if result.__class__ not in _PLAIN and is_stream(result.__class__):
                    return await self._opened(call, result, timer)  # type: ignore[return-value]
            except BaseException as error:
                self._settle_raised(call, error, timer)
                raise
            if timer is not None:
                timer.stop(call)
            self.settle_success(call, None, result)
            return result  # type: ignore[no-any-return]  # noqa: TRY300 - else is far away
        except Exception as error:
            retry = self.policy.retry
            if idempotent is not None:
                retry = retry.knowing(idempotent=idempotent)
            if once or call.failure is None or not is_retryable(call.failure, retry):
                tell_failure(self, call, error)
                raise
            attempt = functools.partial(self._attempt, call, function, args, kwargs)
            return await try_again(self, call, retry, error, attempt)
        finally:
            call.guard = None
            if call.gaps is None:
                gate.running.pop(call, None)
            try:  # noqa: SIM105 - suppress() costs more than all of this
                around.reset(token)
            except ValueError:
                pass  # ended by the garbage collector, in the context of other code

    async def _attempt(
        self,
        call: Call,
        function: Callable[..., Coroutine[Any, Any, R]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> R:
        """An attempt after the first."""
        timer = await self.enter(call, self.prepare(call), args, kwargs)
        try:
            result: Any = await function(*args, **kwargs)
            if result.__class__ not in _PLAIN and is_stream(result.__class__):
                return await self._opened(call, result, timer)  # type: ignore[return-value]
        except BaseException as error:
            self._settle_raised(call, error, timer)
            raise
        if timer is not None:
            timer.stop(call)
        self.settle_success(call, None, result)
        return result  # type: ignore[no-any-return]

    async def pause(self, seconds: float) -> None:
        """Wait before another attempt; a drain ends it with a `ShuttingDownError`."""
        async with self.gate.interruptible(self.name):
            await self.sleep(seconds)

    # ------------------------------------------------------------------ before an attempt

    def prepare(self, call: Call) -> LoopParts:
        """Find the limits and timers of the running loop."""
        loops = self._loops
        parts, is_new = loops.enter(asyncio.get_running_loop())
        if is_new:
            self.breaker.begin()
        self._parts = call.parts = parts
        if loops is not self._loops:  # changed by another thread meanwhile: not for the next call
            self._parts = None
        call.failure = None
        return parts

    def _refusal(self, wait: float) -> CircuitOpenError:
        tell_refusal(self, CircuitOpenError)
        return CircuitOpenError(self.name, None if wait == math.inf else wait, self._circuit.reason)

    async def enter(
        self, call: Call, parts: LoopParts, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Timer | None:
        """Wait for all that a call may have to wait for, and let its time run."""
        call.admission = self._circuit.standing or await ask_breaker(self)
        if parts.line is not None:
            await wait_in_line(self, call, parts.line, (args, kwargs))
        return self.start(call, parts)

    def start(self, call: Call, parts: LoopParts) -> Timer | None:
        """Let the time of an attempt run."""
        call.started = now = self.clock()
        timer = parts.timer
        if timer is not None:
            if parts.line is not None or call.deadline is not None:
                left = max(self.remaining(call), 0.0)
                if left < timer.seconds:  # one of its own: the deadline cuts this attempt short
                    timer = Timer(left, timer.loop, self.clock)
            timer.start(call, now)
        call.timer = timer
        return timer

    def remaining(self, call: Call) -> float:
        """Seconds to the deadline of a call."""
        total = call.parts.policy.timeout.total
        return math.inf if total is None else call.began + total - self.clock()

    # ------------------------------------------------------------------ after an attempt

    async def _opened(self, call: Call, source: Any, timer: Timer | None) -> GuardedStream[Any]:
        """A stream whose first item is there: until then it is an attempt like others."""
        return await GuardedStream(self, source).open(call, timer)

    def _settle_raised(self, call: Call, error: BaseException, timer: Timer | None) -> None:
        """An attempt raised; where that was the end of its time, this raises what says so."""
        if timer is not None and timer.stop(call) and isinstance(error, asyncio.CancelledError):
            timeout = timeout_error(self, call, error)
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
        line, succeeded = call.parts.line, self.events.succeeded
        if line is None and succeeded is None and self._circuit.is_content:
            return  # before the clock is asked: nobody wants to know
        tokens = 0
        if duration is None:
            duration = self.clock() - call.started
        if line is not None:
            tokens = line.leave(call, None, duration, answer)
            call.parts.warm_up()
        self.breaker.succeeded(call.admission, duration)
        if succeeded is not None:
            succeeded(self.name, duration, tokens)

    def settle_error(self, call: Call, error: BaseException) -> None:
        """An attempt raised: the breaker learns of it where the dependency is to blame."""
        if not isinstance(error, Exception) or isinstance(error, CallRejected):
            self.settle_without_verdict(call)
            return
        failure = classify(error)
        duration = self.clock() - call.started
        is_cut_short = was_cut_short(call, error, duration)
        if (line := call.parts.line) is not None:
            line.leave(call, failure, duration, is_cut_short=is_cut_short)
        if failure.kind is _THROTTLED:
            apply_throttling(self, error, failure)
        if is_cut_short:
            self.breaker.released(call.admission)
        elif failure.counts:
            self.breaker.failed(call.admission, duration, symptom(root_cause(error), failure))
        else:
            seen, admission = symptom(root_cause(error), failure), call.admission
            pause = 0.0 if admission is self._circuit.standing else failure.pause  # of a probe
            self.breaker.denied(admission, seen, pause)
        call.failure = failure
        if self.events.heard:
            tell_attempt(self, error, failure, duration)

    def settle_without_verdict(self, call: Call) -> None:
        """An attempt was given up by its caller, or never reached the dependency."""
        if (line := call.parts.line) is not None:
            line.leave_without_verdict(call)
        self.breaker.released(call.admission)

    # ------------------------------------------------------------------ as a block

    def __enter__(self) -> NoReturn:
        raise UnsupportedCallError(f"Write async with guard({self.name!r}): it may have to wait")

    def __exit__(self, *_: object) -> None:
        """Only so that `__enter__` is asked."""

    async def __aenter__(self) -> Self:
        await begin_block(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        end_block(self, error)
