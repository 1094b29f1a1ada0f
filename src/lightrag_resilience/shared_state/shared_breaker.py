"""A breaker whose state all workers share. Only a call that may be a probe waits for Redis.

Each worker has a replica of the state. It admits or rejects by that replica, and sends batches of
outcomes through the `Synchronizer`; `apply_remote_state` takes over what the cluster decides.
Without Redis the breaker decides by itself: then it is diverged.
"""

from __future__ import annotations

import asyncio
import enum
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lightrag_resilience.breakers import Breaker
from lightrag_resilience.circuit.state_machine import Admission, State
from lightrag_resilience.config.policies import BreakerPolicy
from lightrag_resilience.events import Events
from lightrag_resilience.runtime.tasks import finish_from_any_thread
from lightrag_resilience.text import is_by_hand

from .messages import Announcement, Report, policy_as_json
from .script_runner import BreakerRef

__all__ = ["FlushPriority", "OpenState", "SharedBreaker"]

_MIN_PROBE_WAIT, _MAX_PROBE_WAIT = 0.001, 0.05  # seconds that a call waits for a probe's permit
_ROUND_TRIPS = 3  # that it waits, within these bounds
_REQUEST_TIMEOUT = 1.0  # seconds after which an unanswered request no longer blocks the next
_MAX_RETRY_WAIT = 0.25  # seconds until a rejected worker requests a probe again


class FlushPriority(enum.Enum):
    """When a report is sent: in the next batch, with a batch within milliseconds, or now."""

    BATCHED = "batched"
    NEXT = "next"
    IMMEDIATE = "immediate"


class _Synchronizer(Protocol):
    """Talks to Redis from a thread of its own. No method waits."""

    @property
    def connected(self) -> bool: ...
    @property
    def round_trip(self) -> float: ...

    def begin(self) -> None: ...
    def schedule_report(self, breaker: SharedBreaker, when: FlushPriority) -> None: ...
    def request_probe(
        self, breaker: SharedBreaker, lease: float, answered: Callable[[], None]
    ) -> None: ...
    def return_probe(self, breaker: SharedBreaker, token: str) -> None: ...
    def force_state(
        self, breaker: SharedBreaker, state: State, reason: str, *, open_for: float = 0.0
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class OpenState:
    """An open state: seconds left, breaks in a row, and the reason."""

    left: float
    opens: int
    reason: str


class _Probe(Admission):
    """A probe whose permit the cluster granted."""

    __slots__ = ("token",)

    def __init__(self, generation: int, token: str) -> None:
        super().__init__(generation)
        self.token = token


class SharedBreaker(Breaker):
    """Admits calls by the state of the cluster and reports how they end. Thread-safe.

    Args:
        name: The dependency.
        policy: When to open and for how long; the same in all workers.
        prefix: Of the keys in Redis.
        sync: Talks to Redis.
        events: Receives changes of state.
        clock: Monotonic seconds.
    """

    __slots__ = (
        "_awaits_decision",
        "_is_diverged",
        "_is_due",
        "_is_for_background",
        "_lease",
        "_report",
        "_request_after",
        "_requested_until",
        "_sync",
        "ref",
    )

    _counts_all: ClassVar[bool] = True  # the cluster's window needs all successes

    def __init__(  # noqa: PLR0913 - two of them by name
        self,
        name: str,
        policy: BreakerPolicy,
        prefix: str,
        sync: _Synchronizer,
        *,
        events: Events | None = None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(name, policy, events=events, clock=clock)
        self.ref = BreakerRef(prefix, name, policy_as_json(policy))
        self._sync = sync
        self._report = Report(0)
        self._is_due = False
        self._is_diverged = False
        self._awaits_decision = False
        """Whether it tripped and the cluster has not yet decided on that report."""
        self._lease: tuple[str, float] | None = None
        self._is_for_background = False
        """Whether a background probe requested the last permit."""
        self._request_after = self._requested_until = -math.inf

    def begin(self) -> None:
        """A new event loop, perhaps in a new process, is about to make calls."""
        self._sync.begin()

    # ------------------------------------------------------------------ before a call

    async def acquire_async(self) -> Admission:
        """Admit one call. One caller at a time requests a probe's permit of the cluster.

        Raises:
            CircuitOpenError: The circuit is open, or half-open and all permits are held.
        """
        if self._request_probe(in_background=False):
            timeout = max(_MIN_PROBE_WAIT, _ROUND_TRIPS * self._sync.round_trip)
            await self._await_probe(self.circuit.policy.lease, min(timeout, _MAX_PROBE_WAIT))
        return self.acquire()

    async def acquire_in_background(self, lease: float) -> Admission | None:
        """The permit of a background probe; None where it is not due, or another probe runs."""
        if self._request_probe(in_background=True):
            await self._await_probe(min(lease, self.circuit.policy.lease), _REQUEST_TIMEOUT)
        return await super().acquire_in_background(lease)

    def expect_background_probe(self, *, is_expected: bool) -> None:
        """As `Breaker` does; the next command carries it to the cluster."""
        super().expect_background_probe(is_expected=is_expected)
        self.ref.policy = policy_as_json(self.circuit.policy, is_probed=is_expected)

    def _admission(self, now: float, *, in_background: bool = False) -> Admission | None:
        circuit = self.circuit
        if circuit.shared_admission is not None or not self._follows_cluster():
            admission = circuit.acquire(now, in_background=in_background)
            self._is_diverged |= admission is not None and admission is not circuit.shared_admission
            return admission
        # The permit is this worker's: the first caller uses it, not only the one that requested it.
        # One that a background probe requested is left to it.
        is_left = self._is_for_background and not in_background and now < circuit.probed_until
        if self._lease is None or is_left or circuit.state is not State.HALF_OPEN:
            return None
        (token, until), self._lease = self._lease, None
        if until <= now:
            return None
        probe = _Probe(circuit.generation, token)
        # Of this process it is known whether the call goes on, however short the cluster's lease.
        circuit.track_probe(probe, now, circuit.policy.lease)
        return probe

    def _request_probe(self, *, in_background: bool) -> bool:
        """Whether this caller is the one to request a probe's permit."""
        with self._lock:
            now, circuit = self._clock(), self.circuit
            earliest = -math.inf if in_background else circuit.probed_until
            if circuit.shared_admission is not None or not self._follows_cluster():
                return False
            known = (circuit.open_until, self._request_after, self._requested_until)
            if self._lease is not None or now < max(earliest, *known):
                return False
            self._requested_until = now + _REQUEST_TIMEOUT
            self._is_for_background = in_background
            return True

    async def _await_probe(self, lease: float, timeout: float) -> None:  # noqa: ASYNC109 - no error
        """Wait for the answer, but only for a moment: a slow Redis must not slow calls down."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_answer() -> None:  # in the sync thread
            self._requested_until = -math.inf
            finish_from_any_thread(answer, None)

        self._sync.request_probe(self, lease, on_answer)
        # An answer that comes later serves the next caller: see `on_probe_answer`.
        await asyncio.wait({answer}, timeout=timeout)

    def _follows_cluster(self) -> bool:
        return self._sync.connected and not self._is_diverged and self.circuit.mode == "enforce"

    # ------------------------------------------------------------------ after a call

    def on_success(self, admission: Admission, duration: float) -> None:
        """A call succeeded after `duration` seconds."""
        if isinstance(admission, _Probe):
            self._on_probe_result(admission, duration, failed=False)
            return
        if admission is self.circuit.shared_admission:
            # Hot path, so without the lock: a success lost to a race does no harm.
            self._report.calls += 1
            if duration >= self.circuit.slow_after:
                self._report.slow += 1
            if not self._is_due:
                self._schedule_report(FlushPriority.BATCHED)
        super().on_success(admission, duration)

    def on_failure(self, admission: Admission, duration: float, symptom: str = "") -> None:
        """A call failed after `duration` seconds through the dependency's fault."""
        if isinstance(admission, _Probe):
            self._on_probe_result(admission, duration, failed=True, symptom=symptom)
            return
        with self._lock:
            circuit = self.circuit
            # An admission of an earlier state, or of this worker's own probe, is not reported.
            counts = admission is circuit.shared_admission
            if counts:
                self._report.calls += 1
                self._report.failed += 1
                self._report.slow += duration >= circuit.slow_after
                self._report.record_failure(symptom)
            circuit.on_failure(admission, duration, self._clock(), symptom)
            if counts and circuit.state is State.OPEN:
                self._is_diverged = self._awaits_decision = True
                self._report.tripped = circuit.reason
            self._queue_health()
            self._queue_transition()
        self._publish_transitions()
        self._schedule_report(
            FlushPriority.IMMEDIATE if self._awaits_decision else FlushPriority.NEXT
        )

    def on_uncounted_failure(self, admission: Admission, symptom: str, pause: float = 0.0) -> None:
        """A call was answered but not served, as with 401: no outage, but all workers see it."""
        if isinstance(admission, _Probe):
            self._on_probe_denied(admission, symptom, pause)
            return
        if admission is self.circuit.shared_admission:
            with self._lock:
                self._report.record_failure(symptom)
            if not self._is_due:
                self._schedule_report(FlushPriority.BATCHED)
        super().on_uncounted_failure(admission, symptom, pause)

    def _on_probe_denied(self, probe: _Probe, symptom: str, pause: float) -> None:
        with self._lock:
            if self._sync.connected:
                self.circuit.release(probe)
                self.circuit.last = symptom
                milliseconds = round(min(pause, self.circuit.breaks.longest) * 1000)
                self._report.verdicts += ((probe.token, f"met {milliseconds} {symptom}"),)
            else:
                self._is_diverged = True
                self.circuit.on_uncounted_failure(probe, self._clock(), symptom, pause=pause)
            self._queue_transition()
        self._publish_transitions()
        self._schedule_report(FlushPriority.IMMEDIATE)

    def release(self, admission: Admission) -> None:
        """A call ended without a verdict; a probe's permit is released at once."""
        super().release(admission)
        if isinstance(admission, _Probe):
            self._sync.return_probe(self, admission.token)

    def _on_probe_result(
        self, probe: _Probe, duration: float, *, failed: bool, symptom: str = ""
    ) -> None:
        """Report how a probe ended; without Redis, decide here."""
        slow = duration >= self.circuit.slow_after
        with self._lock:
            if self._sync.connected:
                self.circuit.release(probe)
                verdict = "was slow" if slow else "ok"
                if failed:
                    self.circuit.last = symptom
                    verdict = f"failed with {symptom}" if symptom else "failed"
                self._report.verdicts += ((probe.token, verdict),)
            else:
                self._is_diverged = True
                if failed:
                    self.circuit.on_failure(probe, duration, self._clock(), symptom)
                else:
                    self.circuit.on_success(probe, duration, self._clock())
            self._queue_transition()
        self._publish_transitions()
        self._schedule_report(FlushPriority.IMMEDIATE)

    def _schedule_report(self, when: FlushPriority) -> None:
        self._is_due = True
        self._sync.schedule_report(self, when)

    # ------------------------------------------------------------------ by hand

    def open(self, reason: str = "by hand", *, open_for: float | None = None) -> None:
        """Force all workers' circuits open, for `open_for` seconds or as the policy says."""
        super().open(reason, open_for=open_for)
        seconds = self.circuit.breaks.first if open_for is None else open_for
        self._sync.force_state(self, State.OPEN, reason, open_for=seconds)

    def half_open(self, reason: str = "by hand") -> None:
        """Force all workers' circuits half-open, so that probes start now."""
        super().half_open(reason)
        self._sync.force_state(self, State.HALF_OPEN, reason)

    def close(self, reason: str = "by hand") -> None:
        """Force all workers' circuits closed."""
        super().close(reason)
        self._sync.force_state(self, State.CLOSED, reason)

    def update_policy(self, policy: BreakerPolicy, reason: str = "by hand") -> None:
        """Replace the policy in this process. All workers must be given the same one."""
        self.ref.policy = policy_as_json(policy, is_probed=self.circuit.is_probed)
        super().update_policy(policy, reason)

    # ------------------------------------------------------------------ from the sync thread

    def take_report(self) -> Report | None:
        """The outcomes since the last report, to be sent once; None if there are none."""
        with self._lock:
            self._is_due = False
            report = self._report
            if not (report.calls or report.verdicts or report.tripped or report.causes):
                return None
            self._report = Report(report.batch + 1)
            return report if self.circuit.mode == "enforce" else None

    def on_report_lost(self, report: Report) -> None:
        """A report did not reach Redis: apply the verdicts of its probes here."""
        with self._lock:
            now, circuit = self._clock(), self.circuit
            self._awaits_decision = False
            for _, verdict in report.verdicts:
                if circuit.state is State.HALF_OPEN:
                    self._is_diverged = True
                    if verdict == "ok":
                        reason = "after its probes succeeded"
                        circuit.restore(State.CLOSED, now, reason, remaining=0.0, opens=0)
                    elif verdict.startswith("met "):
                        _, milliseconds, met = verdict.split(" ", 2)
                        pause = int(milliseconds) / 1000.0
                        circuit.reopen(now, f"after a probe met {met}", pause)
                    else:
                        circuit.open(now, f"after a probe {verdict}")
            self._queue_transition()
        self._publish_transitions()

    def apply_remote_state(
        self,
        remote: Announcement,
        *,
        announced: bool = False,
        rejoined: bool = False,
        answers: Report | None = None,
    ) -> None:
        """Take over the state of the cluster if it is newer than the replica.

        Args:
            remote: The state of the cluster.
            announced: Whether it was published, so that the state has just changed.
            rejoined: Whether Redis was unavailable; then the cluster wins over this worker.
            answers: The report to which this is the answer.
        """
        with self._lock:
            circuit, ref = self.circuit, self.ref
            # The version of a published state may be known from a reply that was not taken over.
            is_new = remote.version > ref.version
            is_new |= announced and self._is_diverged and remote.version == ref.version
            if rejoined or (answers is not None and answers.tripped):
                self._awaits_decision = False
            if not (is_new or rejoined):
                return
            ref.version = remote.version
            # With a quorum one worker's trip is its own until the cluster decides.
            is_decided = (
                announced or rejoined or circuit.policy.quorum == 1 or not self._is_diverged
            )
            is_closed = remote.state is State.CLOSED
            if circuit.mode != "enforce" or (
                is_closed and (self._awaits_decision or not is_decided)
            ):
                return
            self._is_diverged = self._awaits_decision = False
            if is_closed and is_by_hand(remote.reason):
                circuit.evidence = None  # the cluster's is forgotten, too
            if is_closed and circuit.shared_admission is not None:
                return
            # Outcomes and permits of the previous state count no more.
            self._lease = None
            self._report.calls = self._report.failed = self._report.slow = 0
            self._report.causes = {}
            circuit.restore(
                remote.state,
                self._clock(),
                remote.reason,
                remaining=remote.remaining,
                opens=remote.opens,
                outage=remote.outage,
            )
            self._queue_transition()
        self._publish_transitions()

    def on_probe_answer(self, remote: Announcement, token: str, lease: float | None) -> None:
        """The answer to a request for a probe's permit; `lease` in seconds if granted."""
        self.apply_remote_state(remote)
        with self._lock:
            now = self._clock()
            if lease is not None and self.circuit.state is State.HALF_OPEN:
                self._lease = (token, now + lease)
            elif remote.state is State.HALF_OPEN:
                self._request_after = now + min(max(remote.remaining, 0.01), _MAX_RETRY_WAIT)

    def abandon_unused_probe(self, token: str) -> bool:
        """Drop a granted permit that no call has used; whether there was one."""
        with self._lock:
            is_unused = self._lease is not None and self._lease[0] == token
            if is_unused:
                self._lease = None
            return is_unused

    def holds_probe(self, token: str) -> bool:
        """Whether a granted permit is still unused, or its call still runs."""
        with self._lock:
            if self._lease is not None and self._lease[0] == token:
                return True
            probes = self.circuit.probes
            return any(isinstance(probe, _Probe) and probe.token == token for probe in probes)

    def open_state_to_restore(self) -> OpenState | None:
        """The open state to write to a Redis that lost or missed it; None if there is none."""
        with self._lock:
            circuit = self.circuit
            left = circuit.open_until - self._clock()
            is_own = self._is_diverged and circuit.policy.quorum > 1
            if circuit.mode != "enforce" or not 0 < left < math.inf or is_own:
                return None
            return OpenState(left, circuit.opens, circuit.reason)

    def reset_after_fork(self) -> None:
        """In a child process: drop the lock, the report and the lease, which are the parent's."""
        self.take_lock(threading.RLock())
        self._is_due = False
        self._report = Report(0)
        self._lease = None
        self._requested_until = -math.inf

    @property
    def is_diverged(self) -> bool:
        """Whether this worker is not closed by its own decision, not by the cluster's."""
        return self._is_diverged and self.circuit.shared_admission is None
