"""A breaker whose state all workers share. No call waits for Redis, save one for a moment.

Closed, it admits, and open, it refuses, by what this worker knows; outcomes are added up and sent
by the `Synchronizer`, and what the cluster decides comes back through `learn`. Where Redis is away
the breaker goes on by itself, as one that is not shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lightrag_resilience.breakers import Breaker
from lightrag_resilience.circuit.state_machine import Admission, State
from lightrag_resilience.config.policies import BreakerPolicy
from lightrag_resilience.errors import CircuitOpenError
from lightrag_resilience.events import Events

from .messages import Announcement, Report, policy_as_json
from .script_runner import BreakerRef

__all__ = ["FlushPriority", "OpenState", "SharedBreaker"]

_SHORTEST_MOMENT, _LONGEST_MOMENT = 0.001, 0.05  # seconds to wait for a probe's place
_ROUND_TRIPS = 3  # in one moment, where Redis is far away
_NO_ANSWER = 1.0  # seconds after which a question is given up
_ASK_AGAIN = 0.25  # seconds at the most until a refused worker asks for a probe's place again


class FlushPriority(enum.Enum):
    """How soon a report is to be sent: with others, in the next small batch, or by itself now."""

    SOON = "soon"
    NEXT = "next"
    NOW = "now"


class _Synchronizer(Protocol):
    """The side that talks to Redis, in a thread of its own. No method waits."""

    @property
    def connected(self) -> bool: ...
    @property
    def round_trip(self) -> float: ...

    def begin(self) -> None: ...
    def schedule_report(self, breaker: SharedBreaker, when: FlushPriority) -> None: ...
    def request_probe(self, breaker: SharedBreaker, answered: Callable[[], None]) -> None: ...
    def return_probe(self, breaker: SharedBreaker, token: str) -> None: ...
    def force_state(
        self, breaker: SharedBreaker, state: State, reason: str, *, open_for: float = 0.0
    ) -> None: ...


def _finish(answer: asyncio.Future[None]) -> None:
    if not answer.done():
        answer.set_result(None)


@dataclass(frozen=True, slots=True)
class OpenState:
    """A break that a worker knows of: seconds left, its number in a row, and why."""

    left: float
    opens: int
    reason: str


class _Probe(Admission):
    """A probe that the cluster admitted."""

    __slots__ = ("token",)

    def __init__(self, generation: int, token: str) -> None:
        super().__init__(generation)
        self.token = token


class SharedBreaker(Breaker):
    """Admits calls by what the cluster decided, and tells it how they end; from any thread.

    Args:
        name: The dependency.
        policy: When to open, and for how long; the same in all workers.
        prefix: Of the keys in Redis.
        sync: Talks to Redis.
        events: Where changes of state are announced.
        clock: Monotonic seconds.
    """

    __slots__ = (
        "_awaits_answer",
        "_is_diverged",
        "_is_due",
        "_lease",
        "_report",
        "_request_after",
        "_requested_until",
        "_sync",
        "subject",
    )

    _counts_all: ClassVar[bool] = True  # for its reports

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
        self.subject = BreakerRef(prefix, name, policy_as_json(policy))
        self._sync = sync
        self._report = Report(0)
        self._is_due = False
        self._is_diverged = False
        self._awaits_answer = False
        """Whether it tripped, and the cluster has not said yet what it makes of that."""
        self._lease: tuple[str, float] | None = None
        self._request_after = self._requested_until = -math.inf

    def begin(self) -> None:
        """Calls will come from a new event loop, perhaps in a new process."""
        self._sync.begin()

    # ------------------------------------------------------------------ before a call

    async def acquire_async(self) -> Admission:
        """Leave for one call; a probe's place is asked of the cluster, by one caller at a time.

        Raises:
            CircuitOpenError: The circuit is open, or its probes are under way.
        """
        if self._request_probe():
            await self._await_probe()
        return self.acquire()

    def acquire(self) -> Admission:
        """As `acquire_async`, with what is known now."""
        with self._lock:
            now = self._clock()
            admission = self._admission(now)
            circuit = self.circuit
            wait, reason, state = circuit.retry_after(now), circuit.reason, circuit.state
            self._queue_transition()
        self._publish_transitions()
        if admission is None:
            raise CircuitOpenError(self.name, wait, reason, state.value)
        return admission

    def _admission(self, now: float) -> Admission | None:
        circuit = self.circuit
        if circuit.shared_admission is not None or not self._is_ruled_by_cluster():
            admission = circuit.acquire(now)
            self._is_diverged |= admission is not None and admission is not circuit.shared_admission
            return admission
        if self._lease is None or circuit.state is not State.HALF_OPEN:
            return None
        (token, until), self._lease = self._lease, None
        if until <= now:
            return None
        probe = _Probe(circuit.generation, token)
        circuit.track_probe(probe, now, until - now)
        return probe

    def _request_probe(self) -> bool:
        """Whether this caller asks."""
        with self._lock:
            now, circuit = self._clock(), self.circuit
            if circuit.shared_admission is not None or not self._is_ruled_by_cluster():
                return False
            earliest = max(circuit.open_until, self._request_after, self._requested_until)
            if self._lease is not None or now < earliest:
                return False
            self._requested_until = now + _NO_ANSWER
            return True

    async def _await_probe(self) -> None:
        """Until the answer is here, but not for long: a slow Redis costs no call its time."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()

        def answered() -> None:
            self._requested_until = -math.inf
            with contextlib.suppress(RuntimeError):  # the asker's loop is closed by now
                loop.call_soon_threadsafe(_finish, answer)

        self._sync.request_probe(self, answered)
        moment = min(max(_SHORTEST_MOMENT, _ROUND_TRIPS * self._sync.round_trip), _LONGEST_MOMENT)
        await asyncio.wait({answer}, timeout=moment)

    def _is_ruled_by_cluster(self) -> bool:
        return self._sync.connected and not self._is_diverged and self.circuit.mode == "enforce"

    # ------------------------------------------------------------------ after a call

    def on_success(self, admission: Admission, duration: float) -> None:
        """A call succeeded after `duration` seconds."""
        if isinstance(admission, _Probe):
            self._judge(admission, duration, failed=False)
            return
        if admission is self.circuit.shared_admission:
            # Without the lock: a lost success does no harm.
            self._report.calls += 1
            if duration >= self.circuit.slow_after:
                self._report.slow += 1
            if not self._is_due:
                self._publish(FlushPriority.SOON)
        super().on_success(admission, duration)

    def on_failure(self, admission: Admission, duration: float, symptom: str = "") -> None:
        """A call failed after `duration` seconds, and the dependency is to blame."""
        if isinstance(admission, _Probe):
            self._judge(admission, duration, failed=True, symptom=symptom)
            return
        with self._lock:
            circuit = self.circuit
            counts = admission is circuit.shared_admission
            if counts:
                self._report.calls += 1
                self._report.failed += 1
                self._report.slow += duration >= circuit.slow_after
                self._report.note(symptom)
            circuit.on_failure(admission, duration, self._clock(), symptom)
            if counts and circuit.state is State.OPEN:
                self._is_diverged = self._awaits_answer = True
                self._report.tripped = circuit.reason
            self._queue_health()
            self._queue_transition()
        self._publish_transitions()
        self._publish(FlushPriority.NOW if self._awaits_answer else FlushPriority.NEXT)

    def on_uncounted_failure(self, admission: Admission, symptom: str, pause: float = 0.0) -> None:
        """A call was answered and not served: no outage, and seen all the same by all workers."""
        if isinstance(admission, _Probe):
            self._deny(admission, symptom, pause)
            return
        if admission is self.circuit.shared_admission:
            with self._lock:
                self._report.note(symptom)
            if not self._is_due:
                self._publish(FlushPriority.SOON)
        super().on_uncounted_failure(admission, symptom, pause)

    def _deny(self, probe: _Probe, symptom: str, pause: float) -> None:
        with self._lock:
            if self._sync.connected:
                self.circuit.release(probe)
                self.circuit.last = symptom
                milliseconds = round(min(pause, self.circuit.policy.max_open_for) * 1000)
                self._report.verdicts += ((probe.token, f"met {milliseconds} {symptom}"),)
            else:
                self._is_diverged = True
                self.circuit.on_uncounted_failure(probe, self._clock(), symptom, pause=pause)
            self._queue_transition()
        self._publish_transitions()
        self._publish(FlushPriority.NOW)

    def release(self, admission: Admission) -> None:
        """A call ended with no verdict; a probe's place is free again at once."""
        super().release(admission)
        if isinstance(admission, _Probe):
            self._sync.return_probe(self, admission.token)

    def _judge(self, probe: _Probe, duration: float, *, failed: bool, symptom: str = "") -> None:
        """Tell the cluster how a probe ended; where it cannot be told, decide here."""
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
        self._publish(FlushPriority.NOW)

    def _publish(self, when: FlushPriority) -> None:
        self._is_due = True
        self._sync.schedule_report(self, when)

    # ------------------------------------------------------------------ by hand

    def open(self, reason: str = "by hand", *, open_for: float | None = None) -> None:
        """Open the circuit of all workers, for `open_for` seconds or as long as the policy says."""
        super().open(reason, open_for=open_for)
        seconds = self.circuit.policy.open_for if open_for is None else open_for
        self._sync.force_state(self, State.OPEN, reason, open_for=seconds)

    def half_open(self, reason: str = "by hand") -> None:
        """Let probes of all workers through now."""
        super().half_open(reason)
        self._sync.force_state(self, State.HALF_OPEN, reason)

    def close(self, reason: str = "by hand") -> None:
        """Close the circuit of all workers."""
        super().close(reason)
        self._sync.force_state(self, State.CLOSED, reason)

    def update_policy(self, policy: BreakerPolicy, reason: str = "by hand") -> None:
        """Go on by another policy, which the other workers must be given too."""
        self.subject.policy = policy_as_json(policy)
        super().update_policy(policy, reason)

    # ------------------------------------------------------------------ the synchronizer's side

    def take_report(self) -> Report | None:
        """What is to be sent, once; None if there is nothing."""
        with self._lock:
            self._is_due = False
            report = self._report
            if not (report.calls or report.verdicts or report.tripped or report.causes):
                return None
            self._report = Report(report.batch + 1)
            return report if self.circuit.mode == "enforce" else None

    def on_report_lost(self, report: Report) -> None:
        """Redis is away: what probes showed is decided here."""
        with self._lock:
            now, circuit = self._clock(), self.circuit
            self._awaits_answer = False
            for _, verdict in report.verdicts:
                if circuit.state is State.HALF_OPEN:
                    self._is_diverged = True
                    if verdict == "ok":
                        circuit.close(now, "after its probes succeeded")
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
        there: Announcement,
        *,
        announced: bool = False,
        rejoined: bool = False,
        answers: Report | None = None,
    ) -> None:
        """Take over what the cluster decided, unless it is old news.

        Args:
            there: The state of the cluster.
            announced: It has come to this state just now.
            rejoined: Redis was away; whatever this worker decided meanwhile, the cluster wins.
            answers: The report to which this is the answer.
        """
        with self._lock:
            circuit, subject = self.circuit, self.subject
            is_new = there.version > subject.version
            is_new |= announced and self._is_diverged and there.version == subject.version
            if rejoined or (answers is not None and answers.tripped):
                self._awaits_answer = False
            if not (is_new or rejoined):
                return
            subject.version = there.version
            is_decided = (
                announced or rejoined or circuit.policy.quorum == 1 or not self._is_diverged
            )
            is_closed = there.state is State.CLOSED
            if circuit.mode != "enforce" or (is_closed and (self._awaits_answer or not is_decided)):
                return
            self._is_diverged = self._awaits_answer = False
            if is_closed and circuit.shared_admission is not None:
                return
            self._lease = None
            self._report.calls = self._report.failed = self._report.slow = 0
            self._report.causes = {}
            circuit.restore(
                there.state,
                self._clock(),
                there.reason,
                remaining=there.remaining,
                opens=there.opens,
            )
            self._queue_transition()
        self._publish_transitions()

    def on_probe_answer(self, there: Announcement, token: str, lease: float | None) -> None:
        """What the cluster said to a request for a probe's place; `lease` in seconds if granted."""
        self.apply_remote_state(there)
        with self._lock:
            now = self._clock()
            if lease is not None and self.circuit.state is State.HALF_OPEN:
                self._lease = (token, now + lease)
            elif there.state is State.HALF_OPEN:
                self._request_after = now + min(max(there.remaining, 0.01), _ASK_AGAIN)

    def give_up_unused(self, token: str) -> bool:
        """Whether a granted place was not used; it is then no longer this worker's."""
        with self._lock:
            is_unused = self._lease is not None and self._lease[0] == token
            if is_unused:
                self._lease = None
            return is_unused

    def keeps(self, token: str) -> bool:
        """Whether the call of a granted place goes on, or is yet to come."""
        with self._lock:
            if self._lease is not None and self._lease[0] == token:
                return True
            probes = self.circuit.probes
            return any(isinstance(probe, _Probe) and probe.token == token for probe in probes)

    def open_state_to_restore(self) -> OpenState | None:
        """What to plant in a Redis that lost its state, or did not hear of this break."""
        with self._lock:
            circuit = self.circuit
            left = circuit.open_until - self._clock()
            by_itself = self._is_diverged and circuit.policy.quorum > 1
            if circuit.mode != "enforce" or not 0 < left < math.inf or by_itself:
                return None
            return OpenState(left, circuit.opens, circuit.reason)

    def reset_after_fork(self) -> None:
        """In a child process: no lock, report or lease of the parent's is ours."""
        self.take_lock(threading.RLock())
        self._is_due = False
        self._report = Report(0)
        self._lease = None
        self._requested_until = -math.inf

    @property
    def is_diverged(self) -> bool:
        """Whether this worker opened or tries by itself, and not by what the cluster decided."""
        return self._is_diverged and self.circuit.shared_admission is None
