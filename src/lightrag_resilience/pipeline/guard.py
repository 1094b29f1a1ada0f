"""The guard of one dependency: the order of the policies around a call, and nothing else.

A call goes through these steps; each policy is a file of its own and knows none of the others::

    deadline ─▶ ┌ retry ──────────────────────────────────────────────────────┐
                │ breaker ─▶ rate limit ─▶ permit ─▶ breaker ─▶ timeout ─▶ call│
                └──────────────── outcome ◀── class of failure ◀──────────────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from threading import get_ident  # not the module: each attribute costs every call
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, Self, TypeVar, overload

from lightrag_resilience.breakers import Breaker
from lightrag_resilience.calls.attempts import Attempts
from lightrag_resilience.calls.call_context import (
    Call,
    CallUnderDeadline,
    current_call,
    deadline_of,
    inside_guarded_call,
)
from lightrag_resilience.calls.loop_state import LoopStates
from lightrag_resilience.calls.publishing import (
    publish_attempt_rejected,
    publish_call_failed,
    publish_retry_scheduled,
)
from lightrag_resilience.config.policies import Policy, RetryPolicy
from lightrag_resilience.draining.gate import DrainGate
from lightrag_resilience.errors import CallShedError, UnsupportedCallError
from lightrag_resilience.events import Events
from lightrag_resilience.health import Health, health_of
from lightrag_resilience.limits.rate_limiter import SharedLimiter
from lightrag_resilience.retry import (
    BEFORE_LIGHTRAG,
    RetryBudget,
    RetryLoop,
    add_reason,
    is_retryable,
    single_worker,
)
from lightrag_resilience.runtime.asyncio_compat import current_task
from lightrag_resilience.runtime.callables import as_coroutine_function, is_stream
from lightrag_resilience.streams.guarded_stream import GuardedStream
from lightrag_resilience.timeouts.attempt_timer import Clock, Timer
from lightrag_resilience.timeouts.loop_timers import LoopTimersRegistry

from .block import begin_block, end_block
from .judging import Judging, judging
from .recovery_probe import Probe, RecoveryProbe

__all__ = ["Guard"]

_PLAIN = frozenset({str, dict, list, int, float, bool, tuple, bytes, type(None)})  # no streams
_SHED_FOR = 1.0  # seconds
_TURN = 0.05  # seconds after which a retry looks again whether it is needed as evidence
_TURN_GROWTH = 1.5  # many calls that wait must not keep the event loop busy
_MOST_PROBES = 8  # that are kept, to hold again: their owners may never end them
P = ParamSpec("P")
R = TypeVar("R")


class Guard(Attempts):
    """Breaker, retry, limits and timeouts of one dependency, for every kind of callable.

    As a context manager (``async with guard:``) it does all but retry: a block cannot be run
    again. Calls made inside a call of the same guard pass straight through.

    **The class of a live guard changes.** `Guards.trace` sets ``guard.__class__`` to a subclass
    (`telemetry.tracing.TracedGuard`) and back, so that untraced calls pay nothing for tracing, not
    even a check. Therefore keep the guard and not its bound methods, which would stay untraced, and
    give `Guard` and its subclasses the same slots, which Python requires of such a change.

    Args:
        name: The dependency, such as ``llm.openai``.
        policy: What to do; durations are seconds.
        base: The policy given in code, from which variables made `policy`.
        events: Where each step is published.
        breaker: A breaker made elsewhere, such as one that all workers share.
        limit: The rate limit that all workers share.
        workers: Number of workers, this one included; they share the retry budget.
        clock: Monotonic seconds.
        sleep: Waits so many seconds between attempts.
        gate: Lets calls in until a drain begins.
        loop_timers: The timers shared with other guards on each event loop.
    """

    __slots__ = ("__weakref__", "_recovery_probes", "_retrying", "base")

    def __init__(  # noqa: PLR0913 - all but two by name
        self,
        name: str,
        policy: Policy,
        *,
        base: Policy | None = None,
        events: Events | None = None,
        breaker: Breaker | None = None,
        limit: SharedLimiter | None = None,
        workers: Callable[[], int] = single_worker,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        gate: DrainGate | None = None,
        loop_timers: LoopTimersRegistry | None = None,
    ) -> None:
        timers = loop_timers or LoopTimersRegistry(clock)
        loop_states = LoopStates(name, policy, timers, clock, limit)
        events = events or Events()
        breaker = breaker or Breaker(name, policy.effective_breaker, events=events, clock=clock)
        budget = RetryBudget(policy.retry.budget, workers)
        super().__init__(name, events, breaker, loop_states, budget)
        self.policy = policy
        self.base = base
        self.clock: Clock = clock
        self.sleep = sleep
        self.gate = gate or DrainGate()
        self._recovery_probes: tuple[RecoveryProbe, ...] = ()
        self._retrying = 0  # attempts after a first one, in flight
        self.take_class(type(self))

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
            CallRejected: It was not sent: circuit open, rate limit used up, queue full, or a drain.
            AttemptTimeoutError: The last attempt took too long.
            DeadlineExceededError: All attempts together took too long.
            Exception: What the function raised in its last attempt.
        """
        return await self.run(as_coroutine_function(function), args, kwargs)

    def take_class(self, cls: type[Guard]) -> None:
        """Become of a class, or of the one that judges results on top of it."""
        is_judging = self.policy.judges_results or issubclass(type(self), Judging)
        changed: Any = self
        changed.__class__ = judging(cls) if is_judging else cls

    def update_policy(self, policy: Policy, reason: str = "by hand") -> None:
        """Use another policy for new calls, from any thread; calls under way keep theirs."""
        super().update_policy(policy, reason)
        self.take_class(type(self))
        for probe in self._recovery_probes[-1:]:
            probe.notify()

    @property
    def health(self) -> Health:
        """The health of the dependency, as this process sees it."""
        seen = self.breaker.snapshot()
        return health_of(
            self.name,
            state=seen.state.value,
            mode=seen.mode,
            reason=seen.reason,
            tally=seen.tally,
            cooldown=self.occupancy.cooldown_remaining,
        )

    def refuse_if_open(self, began: float | None = None) -> None:
        """Reject now what a call would be rejected with at once.

        Args:
            began: Monotonic seconds at which its caller first wanted the answer; None is now.

        Raises:
            CircuitOpenError: The circuit is open, and no call of a user may probe it now.
        """
        circuit, now = self._circuit, self.clock()
        if circuit.shared_admission is None and now < max(circuit.open_until, circuit.probed_until):
            wait = circuit.retry_after(now)
            self.demanded_at = max(self.demanded_at, now if began is None else began)
            raise self._rejection(math.inf if wait is None else wait)

    def shed_in_brownout(self) -> None:
        """Hold back a background call, by chance, while more than half of the calls fail.

        Raises:
            CallShedError: This call is one of them; `retry_after` is when to come back.
        """
        evidence = self._circuit.evidence
        if evidence is None or evidence.is_stale(self.clock()):
            return
        if random.random() < evidence.shed_share:  # noqa: S311
            publish_attempt_rejected(self, CallShedError)
            calls, failed = evidence.calls + evidence.run, evidence.failed + evidence.run
            raise CallShedError(self.name, _SHED_FOR, f"as {failed} of {calls} calls failed")

    def set_probe(
        self,
        probe: Probe,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        young_for: float = 60.0,
    ) -> Callable[[], None]:
        """Look for the recovery with a request of its own, while the circuit is open.

        One worker at a time sends it in the background, so that no user's call is the probe. The
        last one set holds; when it is ended, the one before it does again.

        Args:
            probe: Makes the smallest request that shows whether the dependency serves its callers:
                an async function without arguments.
            loop: The only event loop on which it may run, which its client belongs to; None for
                whichever the guard is used on.
            young_for: Seconds of an outage in which callers wait for its end. Until then the probe
                may be rare while no call comes; later it comes every 10 s at the least, as calls
                are rejected until it has seen the return.

        Returns:
            A function that ends it, from any thread.

        Raises:
            UnsupportedCallError: It is no function.
        """
        with self.breaker.lock:  # decorated sync functions are called in many threads
            probes = self._recovery_probes
            made = next((it for it in probes if it.is_of(probe, loop)), None)
            if made is None:
                made = RecoveryProbe(self, probe, loop, young_for)
                self._hold_probes((*probes, made)[-_MOST_PROBES:])
        return functools.partial(self._end_probe, made)

    def _end_probe(self, ended: RecoveryProbe) -> None:
        with self.breaker.lock:
            self._hold_probes(tuple(it for it in self._recovery_probes if it is not ended))

    def _hold_probes(self, probes: tuple[RecoveryProbe, ...]) -> None:
        before, self._recovery_probes = self._recovery_probes[-1:], probes
        if before != probes[-1:]:
            for each in before:
                each.end()
            for each in probes[-1:]:
                each.begin()

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

        `once` makes one attempt, for callers that retry; `idempotent` overrides the policy's.
        """
        # Cost on the hot path decides here: docs/performance.md has it, `make bench` measures it.
        around = current_call  # a local name: a global one is looked up for each of its methods
        parent = around.get()
        if parent is not None:
            if parent.is_within(self):
                return await function(*args, **kwargs)
            if (deadline := deadline_of(parent)) is not None:
                limited = CallUnderDeadline()
                limited.caller_deadline = deadline
                limited.begin(self, parent, self.clock())
                limited.idempotent = idempotent
                return await self._run_under_deadline(limited, function, args, kwargs, once=once)
        gate = self.gate
        if gate.is_closed and not inside_guarded_call():
            gate.check(self.name, self.events)
        now = self.clock()
        if (wait := self._circuit.open_until - now) > 0:
            self.demanded_at = now
            raise self._rejection(wait)
        # From here Call.begin(), prepare(), admit() and _attempt() are written out: even an empty
        # function costs 2 % of a guarded call. A change in one of them is a change here, too;
        # tests/pipeline/test_attempts.py runs both ways through the same cases.
        call = Call()
        call.name = self.name
        call.guard = self
        call.parent = parent
        call.began = now
        call.failure = call.idle_timer = None
        call.suspend_depth = 0
        call.idempotent = idempotent
        gate.running[call] = None
        token = around.set(call)
        try:
            loop_state = self._loop_state
            # Is it the state of the running loop? In this thread, a loop with a current task is the
            # running one. get_running_loop() would cost a system call (getpid) on Python 3.11.
            if (
                loop_state is None
                or (timers := loop_state.loop_timers).thread != get_ident()
                or current_task(timers.loop) is None
            ):
                loop_state = self.prepare(call)
            call.loop_state = loop_state
            admission = self._circuit.shared_admission
            if admission is None or loop_state.controller is not None:
                timer = await self.admit(call, loop_state, args, kwargs)
            else:
                call.admission = admission
                call.started = now
                call.timer = timer = loop_state.timer
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
            return result  # type: ignore[no-any-return]  # noqa: TRY300 - an else would be far from it
        except Exception as error:
            retry = self.policy.retry
            if idempotent is not None:
                retry = retry.with_idempotent(idempotent=idempotent)
            if once or call.failure is None or not is_retryable(call.failure, retry):
                publish_call_failed(self, call, error)
                raise
            attempt = functools.partial(self._attempt, call, function, args, kwargs)
            return await self._run_retries(call, retry, error, attempt)
        finally:
            call.guard = None
            if call.idle_timer is None:
                gate.running.pop(call, None)
            try:  # noqa: SIM105 - suppress() costs more than the whole block
                around.reset(token)
            except ValueError:
                pass  # the garbage collector closed the coroutine, in another context

    async def _run_under_deadline(
        self,
        call: Call,
        function: Callable[..., Coroutine[Any, Any, R]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        once: bool,
    ) -> R:
        """The steps of `run`, which writes them out for calls whose caller has set no deadline."""
        if self.gate.is_closed and not inside_guarded_call():
            self.gate.check(self.name, self.events)
        self.gate.running[call] = None
        token = current_call.set(call)
        try:
            return await self._attempt(call, function, args, kwargs)
        except Exception as error:
            retry = self.policy.retry.with_idempotent(idempotent=call.idempotent)
            if once or call.failure is None or not is_retryable(call.failure, retry):
                publish_call_failed(self, call, error)
                raise
            attempt = functools.partial(self._attempt, call, function, args, kwargs)
            return await self._run_retries(call, retry, error, attempt)
        finally:
            call.guard = None
            if call.idle_timer is None:
                self.gate.running.pop(call, None)
            with contextlib.suppress(ValueError):
                current_call.reset(token)

    async def _attempt(
        self,
        call: Call,
        function: Callable[..., Coroutine[Any, Any, R]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> R:
        """One attempt after the first, which `run` makes in the same steps."""
        timer = await self.admit(call, self.prepare(call), args, kwargs)
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

    async def _opened(self, call: Call, source: Any, timer: Timer | None) -> GuardedStream[Any]:
        """A stream whose first item has come: until then an attempt may be retried."""
        return await GuardedStream(self, source).open(call, timer)

    async def _run_retries(
        self,
        call: Call,
        policy: RetryPolicy,
        first: Exception,
        attempt: Callable[[], Awaitable[R]],
    ) -> R:
        """The result of a further attempt; `first` is what the first one raised.

        Raises:
            Exception: What the last attempt raised.
        """
        if policy.attempts == 1:  # the loop's objects would cost more than the call
            add_reason(first, self.name, "gave up after 1 attempts")
            publish_call_failed(self, call, first)
            raise first
        retries = RetryLoop(
            dependency=self.name,
            policy=policy,
            budget=self.budget,
            deadline=lambda: self.ends_at(call),  # it moves while the timers are suspended
            clock=self.clock,
            sleep=self.pause,
            scheduled=functools.partial(publish_retry_scheduled, self, call),
            last_failure=lambda: call.failure,
            is_browned_out=lambda: self._circuit.is_browned_out,
            took=lambda: self.clock() - call.started,
        )
        try:
            return await retries.run_after(first, functools.partial(self._retry, call, attempt))
        except Exception as error:
            publish_call_failed(self, call, error)
            raise

    async def _retry(self, call: Call, attempt: Callable[[], Awaitable[R]]) -> R:
        """Make a further attempt, after the verdicts that others under way may bring.

        Where so many retries are in flight as can open the circuit, one more would show nothing:
        many calls at once cost a dead provider as few requests as it takes to know that it is down.
        """
        ends, turn = self.clock() + min(BEFORE_LIGHTRAG, self.remaining(call) / 2), _TURN
        while self._retrying >= self._circuit.failures_to_open and self.clock() < ends:
            await self.pause(turn)
            turn *= _TURN_GROWTH
        self._retrying += 1
        try:
            return await attempt()
        finally:
            self._retrying -= 1

    # ------------------------------------------------------------------ as a block

    def __enter__(self) -> NoReturn:
        raise UnsupportedCallError(f"Write async with guard({self.name!r}): it may have to wait")

    def __exit__(self, *_: object) -> None:
        """Exists so that ``with`` reaches `__enter__`, whose error says what to write."""

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
