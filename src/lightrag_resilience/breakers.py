"""The circuit breaker of one dependency: a `Circuit`, a clock, a lock, and pybreaker's interface.

pybreaker gives the vocabulary, the listeners and the error type, and every change of state goes
through it. It never runs a call: it has no neutral outcome and no limit on probes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NoReturn

from pybreaker import (
    CircuitBreaker,
    CircuitBreakerStorage,
    CircuitClosedState,
    CircuitHalfOpenState,
    CircuitOpenState,
)

from .circuit.state_machine import Admission, Circuit, Snapshot, State
from .config.policies import RENEWALS, BreakerPolicy, Mode
from .config.validation import problem_with
from .errors import CircuitOpenError, PolicyError, UnsupportedCallError
from .events import Events, HealthChanged, StateChanged
from .health import advice_for, health_of
from .runtime.tasks import finish_from_any_thread
from .text import MET, is_isolation, printable, symptom_of

__all__ = ["Admission", "Breaker", "Snapshot", "State"]

_log = logging.getLogger("lightrag_resilience")


class Breaker:
    """Admits calls of one dependency, and opens and closes by how they end. Thread-safe.

    Args:
        name: The dependency.
        policy: When to open, and for how long.
        events: Where changes of state are published.
        clock: Monotonic seconds.
        lock: Held for microseconds, so that many breakers may share one.
    """

    __slots__ = (
        "__weakref__",
        "_changes",
        "_clock",
        "_events",
        "_is_publishing",
        "_is_unhealthy",
        "_lock",
        "_published",
        "_pybreaker",
        "_queued_transitions",
        "_waiting",
        "circuit",
        "name",
    )

    _counts_all: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        policy: BreakerPolicy,
        *,
        events: Events | None = None,
        clock: Callable[[], float] = time.monotonic,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.name = name
        self.circuit = Circuit(policy, clock(), counts_all=self._counts_all, renewals=RENEWALS)
        self._pybreaker: _PyBreaker | None = None
        self._clock = clock
        self._events = events or Events()
        # Reentrant: the garbage collector may end an abandoned call while the lock is held.
        self._lock = lock or threading.RLock()
        self._queued_transitions = self.circuit.state
        self._changes: tuple[StateChanged | HealthChanged, ...] = ()
        self._is_publishing = False
        self._published: tuple[str, ...] = ()  # the last changes of this outage
        self._waiting: dict[asyncio.Future[int], None] | None = None  # in order; few need it
        self._is_unhealthy = False
        """Whether it was published that calls fail which the circuit admits."""

    @property
    def pybreaker(self) -> _PyBreaker:
        """This breaker as a pybreaker object, for listeners and tools."""
        with self._lock:
            if self._pybreaker is None:
                self._pybreaker = _PyBreaker(self)
            return self._pybreaker

    @property
    def storage(self) -> CircuitBreakerStorage:
        """The state for pybreaker's own breakers and tools; a state they write is forced here."""
        return _Storage(self)

    @property
    def state(self) -> State:
        """Closed, open or half-open."""
        return self.circuit.state

    def snapshot(self) -> Snapshot:
        """The circuit at this moment, for people."""
        with self._lock:
            return self.circuit.snapshot(self._clock())

    @property
    def outage(self) -> float | None:
        """Seconds for which the circuit has not been closed; None while it is.

        Infinity if an operator isolated it: no recovery of the dependency closes it.
        """
        circuit = self.circuit
        if (began := circuit.outage_began) is None:
            return None
        is_isolated = circuit.open_until == math.inf or is_isolation(circuit.reason)
        return math.inf if is_isolated else self._clock() - began

    @property
    def is_awaited(self) -> bool:
        """Whether callers wait until the circuit closes."""
        return bool(self._waiting)

    async def wait_until_closed(self, seconds: float) -> int:
        """Wait at most `seconds` until the circuit closes, whichever thread closes it.

        Returns:
            How many callers waited for longer.
        """
        closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self.circuit.shared_admission is not None:
                return 0
            waiting = self._waiting = self._waiting or {}
            waiting[closed] = None
        try:
            await asyncio.wait({closed}, timeout=seconds)
        finally:
            with self._lock:
                waiting.pop(closed, None)
        return closed.result() if closed.done() else 0

    # ------------------------------------------------------------------ before and after a call

    def acquire(self) -> Admission:
        """Admit one call.

        Raises:
            CircuitOpenError: The circuit is open, or half-open with all probes taken.
        """
        circuit = self.circuit
        with self._lock:
            now = self._clock()
            admission = self._admission(now)
            wait, reason, state = circuit.retry_after(now), circuit.reason, circuit.state
            self._queue_transition()
        self._publish_transitions()
        if admission is None:
            raise CircuitOpenError(self.name, wait, reason, state.value)
        return admission

    def _admission(self, now: float, *, in_background: bool = False) -> Admission | None:
        return self.circuit.acquire(now, in_background=in_background)

    async def acquire_in_background(self, lease: float) -> Admission | None:
        """The permit of a background probe; None where it is not due, or another probe runs.

        Args:
            lease: Seconds for which the cluster keeps the permit of a worker that died.
        """
        del lease  # a process that died has no permit of its own breaker
        with self._lock:
            admission = self._admission(self._clock(), in_background=True)
            self._queue_transition()
        self._publish_transitions()
        return None if admission is self.circuit.shared_admission else admission

    def expect_background_probe(self, *, is_expected: bool) -> None:
        """Note whether a background probe can look for the recovery: breaks are short then."""
        self.circuit.is_probed = is_expected

    @property
    def lock(self) -> AbstractContextManager[object]:
        """The lock of this breaker, also for what its guard keeps beside it. Reentrant."""
        return self._lock

    def take_lock(self, lock: AbstractContextManager[object]) -> None:
        """Replace the lock in a child process: a thread of the parent may hold the old one."""
        self._lock = lock
        self._is_publishing = False
        self._waiting = None
        self.circuit.lose_probes()

    def begin(self) -> None:
        """Prepare for calls from a new event loop; only a shared breaker has to."""

    async def acquire_async(self) -> Admission:
        """As `acquire`; a shared breaker may wait here for Redis to grant a probe."""
        return self.acquire()

    def on_success(self, admission: Admission, duration: float) -> None:
        """Record that a call succeeded after `duration` seconds."""
        circuit = self.circuit
        # Hot path: a window full of quick successes stays the same, so take no lock, read no clock.
        if circuit.is_spotless and duration < circuit.slow_after:
            return
        with self._lock:
            circuit.on_success(admission, duration, self._clock())
            if self._is_unhealthy:
                self._queue_health()
            self._queue_transition()
        self._publish_transitions()

    def on_failure(self, admission: Admission, duration: float, symptom: str = "") -> None:
        """Record that a call failed, and that the dependency is to blame.

        Args:
            admission: Its admission.
            duration: Seconds that it took.
            symptom: Status and error class, such as ``HTTP 503 (InternalServerError)``.
        """
        with self._lock:
            self.circuit.on_failure(admission, duration, self._clock(), symptom)
            self._queue_health()
            if self.circuit.state is not self._queued_transitions:
                self._queue_transition()
        if self._changes:  # checked here too: the call would cost as much as its work
            self._publish_transitions()

    def on_uncounted_failure(self, admission: Admission, symptom: str, pause: float = 0.0) -> None:
        """Record an answer such as 401: no outage, but the caller was not served.

        Args:
            admission: Its admission.
            symptom: Status and error class, such as ``HTTP 401 (AuthenticationError)``.
            pause: Seconds until the next probe, where this was one.
        """
        with self._lock:
            self.circuit.on_uncounted_failure(admission, self._clock(), symptom, pause=pause)
            self._queue_health()
            if self.circuit.state is not self._queued_transitions:
                self._queue_transition()
        if self._changes:  # checked here too: the call would cost as much as its work
            self._publish_transitions()

    def release(self, admission: Admission) -> None:
        """End a call without a verdict; a probe frees its slot at once."""
        if admission is self.circuit.shared_admission:  # it holds no slot
            return
        with self._lock:
            self.circuit.release(admission)

    # ------------------------------------------------------------------ by hand

    def open(self, reason: str = "by hand", *, open_for: float | None = None) -> None:
        """Open the circuit, for `open_for` seconds or as if it had tripped."""
        with self._lock:
            now = self._clock()
            self.circuit.open(now, reason)
            if open_for is not None and self.circuit.mode != "forced-open":
                self.circuit.open_until = now + open_for
            self._queue_transition()
        self._publish_transitions()

    def half_open(self, reason: str = "by hand") -> None:
        """Admit probes now."""
        with self._lock:
            self.circuit.half_open(self._clock(), reason)
            self._queue_transition()
        self._publish_transitions()

    def close(self, reason: str = "by hand") -> None:
        """Close the circuit and forget all outcomes."""
        with self._lock:
            self.circuit.close(self._clock(), reason)
            self._queue_transition()
        self._publish_transitions()

    def update_policy(self, policy: BreakerPolicy, reason: str = "by hand") -> None:
        """Use another policy; the state stays, unless the mode changes."""
        with self._lock:
            self.circuit.update_policy(policy, self._clock(), reason)
            self._queue_transition()
        self._publish_transitions()

    def set_mode(self, mode: Mode, reason: str = "by hand") -> None:
        """Enforce, only measure, disable, or force open, against the policy's mode.

        Raises:
            PolicyError: There is no such mode.
        """
        if problem := problem_with(mode, Mode):
            raise PolicyError(f"The mode of a breaker {problem}")
        with self._lock:
            self.circuit.set_mode(mode, self._clock(), reason)
            self._queue_transition()
        self._publish_transitions()

    def _queue_transition(self) -> None:
        """Keep a change of state for `_publish_transitions`; the caller holds the lock."""
        circuit, old = self.circuit, self._queued_transitions
        if circuit.state is not old:
            self._queued_transitions = new = circuit.state
            change = StateChanged(
                self.name, old.value, new.value, circuit.reason, circuit.generation
            )
            self._changes += (change,)
            if new is State.CLOSED and self._waiting:
                for position, closed in enumerate(self._waiting):
                    finish_from_any_thread(closed, position)

    def _queue_health(self) -> None:
        """Queue a change of health where admitted calls begin or cease to fail.

        The caller holds the lock. An opening circuit has an event of its own.
        """
        circuit = self.circuit
        outcomes = circuit.outcomes if circuit.shared_admission is not None else None
        if self._is_unhealthy and outcomes is not None and not outcomes.run:
            return  # still failing
        is_unhealthy = outcomes is not None and outcomes.is_news
        if is_unhealthy is self._is_unhealthy:
            return
        self._is_unhealthy = is_unhealthy
        if outcomes is not None and is_unhealthy:
            health = health_of(self.name, tally=outcomes.tally())
            self._changes += (HealthChanged(self.name, health.condition, str(health)),)
        elif circuit.shared_admission is not None:
            self._changes += (HealthChanged(self.name, "healthy", ""),)

    def _publish_transitions(self) -> None:
        """Publish changes to pybreaker and to all listeners: each once, in order.

        One thread publishes at a time. It also publishes what other threads and the listeners
        themselves change meanwhile, so no listener runs under the lock or sees the wrong order.
        """
        if not self._changes:
            return
        with self._lock:
            if self._is_publishing:
                return
            self._is_publishing = True
        try:
            while (change := self._next_change()) is not None:
                self._log(change)
                if self._pybreaker is not None and isinstance(change, StateChanged):
                    self._pybreaker.show(State(change.new))
                self._events.publish(change)
        except BaseException:
            self._is_publishing = False
            raise

    def _log(self, change: StateChanged | HealthChanged) -> None:
        if isinstance(change, HealthChanged):
            _log_health(change)
            return
        # If probes of one break fail the same way again and again, log that once.
        opens, published = self.circuit.opens, self._published
        news = f"{change.new} {opens} {change.reason}"
        is_repeated = change.new != State.CLOSED.value and news in published
        self._published = () if change.new == State.CLOSED.value else (*published[-3:], news)
        _log_change(change, opens, is_repeated=is_repeated)

    def _next_change(self) -> StateChanged | HealthChanged | None:
        with self._lock:
            if not self._changes:
                self._is_publishing = False
                return None
            change, *rest = self._changes
            self._changes = tuple(rest)
            return change


def _log_health(change: HealthChanged) -> None:
    """Log once that admitted calls begin to fail, and once that they no longer do."""
    extra = {"dependency": change.dependency, "reason": change.reason}
    if change.reason:
        _log.warning("%s", printable(change.reason), extra=extra)
    else:
        name = printable(change.dependency)
        _log.info("%s serves its callers again", name, extra=extra)


def _log_change(change: StateChanged, opens: int, *, is_repeated: bool) -> None:
    """Log a change of state: as a warning if the circuit opens.

    A long outage has many breaks. Logged above debug level are the first break and its probes, the
    breaks 4, 16, 64 and so on, and probes that met what waiting does not mend, with advice.
    """
    is_open, met = change.new == State.OPEN.value, change.reason.startswith(MET)
    level = logging.WARNING if is_open else logging.INFO
    is_news = opens <= 1 or (is_open and (met or _is_power_of_four(opens)))
    if is_repeated or (change.new != State.CLOSED.value and not is_news):
        level = logging.DEBUG
    more = ""
    if is_open and met:
        advice = advice_for(symptom_of(change.reason))
        more = f": {advice}" if advice else ""
    elif is_open and opens > 1:
        more = f", break {opens} in a row"
    _log.log(
        level,
        "Circuit %r is %s %s%s",
        *(change.dependency, change.new, printable(change.reason), more),
        extra={"dependency": change.dependency, "state": change.new, "reason": change.reason},
    )


def _is_power_of_four(number: int) -> bool:
    return number.bit_count() == 1 and number.bit_length() % 2 == 1


class _PyBreaker(CircuitBreaker):
    """A `Breaker` as a pybreaker object: it shows the state, notifies listeners and forces states.

    Its own settings, such as ``fail_max``, show the policy; changing them changes nothing.
    """

    def __init__(self, breaker: Breaker) -> None:
        self._owner = breaker
        policy = breaker.circuit.policy
        super().__init__(
            name=breaker.name,
            fail_max=policy.consecutive_failures or policy.min_calls,
            reset_timeout=breaker.circuit.breaks.first,
            success_threshold=policy.probes,
            state_storage=_Storage(breaker),
        )
        self._shown = self._as_object(breaker.circuit.state)

    @property
    def state(self) -> Any:
        """The state that listeners were notified of last, as pybreaker's object."""
        return self._shown

    @state.setter
    def state(self, state_str: Any) -> NoReturn:
        del state_str
        raise UnsupportedCallError(
            f"The state of {self._owner.name!r} is not assigned: use open(), half_open() or close()"
        )

    def show(self, state: State) -> None:
        """Notify listeners of a transition of the circuit; one that raises is dropped."""
        old, self._shown = self._shown, self._as_object(state)
        for listener in self.listeners:
            try:
                listener.state_change(self, old, self._shown)
            except Exception:  # noqa: BLE001 - whatever it is, the call goes on
                self.remove_listener(listener)
                _log.exception("A pybreaker listener of %r failed and is dropped", self._owner.name)

    def _as_object(self, state: State) -> Any:
        kinds = {State.OPEN: CircuitOpenState, State.HALF_OPEN: CircuitHalfOpenState}
        return kinds.get(state, CircuitClosedState)(self, None)

    def open(self) -> bool:
        self._owner.open("through pybreaker")
        return False

    def half_open(self) -> None:
        self._owner.half_open("through pybreaker")

    def close(self) -> None:
        self._owner.close("through pybreaker")

    def call(self, func: Callable[..., Any], *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raise: pybreaker would count the calls a second time, by its own rules."""
        raise UnsupportedCallError(
            f"Call {getattr(func, '__qualname__', func)!r} through guard({self._owner.name!r}); "
            "this pybreaker object shows and forces the circuit's state, it does not run calls"
        )

    call_async = call

    def calling(self) -> NoReturn:
        """Raise, as `call` does."""
        self.call(self.calling)


class _Storage(CircuitBreakerStorage):
    """The state of a circuit, as pybreaker reads it."""

    def __init__(self, breaker: Breaker) -> None:
        super().__init__(breaker.name)
        self._breaker = breaker

    @property
    def state(self) -> str:
        return self._breaker.circuit.state.value

    @state.setter
    def state(self, state: str) -> None:
        force = {"open": self._breaker.open, "half-open": self._breaker.half_open}
        force.get(state, self._breaker.close)("through pybreaker")

    @property
    def counter(self) -> int:
        return self._breaker.circuit.streak

    @property
    def success_counter(self) -> int:
        return self._breaker.circuit.probe_successes

    @property
    def opened_at(self) -> datetime | None:
        snapshot = self._breaker.snapshot()
        if snapshot.state is not State.OPEN:
            return None
        return datetime.now(UTC) - timedelta(seconds=snapshot.since)

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        """Do nothing: the circuit keeps its own time."""
