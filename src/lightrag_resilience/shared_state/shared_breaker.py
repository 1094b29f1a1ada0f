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
from .script_runner import Subject

__all__ = ["Break", "SharedBreaker", "When"]

_SHORTEST_MOMENT, _LONGEST_MOMENT = 0.001, 0.05  # seconds to wait for a probe's place
_ROUND_TRIPS = 3  # in one moment, where Redis is far away
_NO_ANSWER = 1.0  # seconds after which a question is given up
_ASK_AGAIN = 0.25  # seconds at the most until a refused worker asks for a probe's place again


class When(enum.Enum):
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
    def due(self, breaker: SharedBreaker, when: When) -> None: ...
    def ask(self, breaker: SharedBreaker, answered: Callable[[], None]) -> None: ...
    def give_back(self, breaker: SharedBreaker, token: str) -> None: ...
    def steer(
        self, breaker: SharedBreaker, state: State, reason: str, *, open_for: float = 0.0
    ) -> None: ...


def _finish(answer: asyncio.Future[None]) -> None:
    if not answer.done():
        answer.set_result(None)


@dataclass(frozen=True, slots=True)
class Break:
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
        "_ask_after",
        "_asked_until",
        "_awaits_answer",
        "_is_alone",
        "_is_due",
        "_lease",
        "_report",
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
        self.subject = Subject(prefix, name, policy_as_json(policy))
        self._sync = sync
        self._report = Report(0)
        self._is_due = False
        self._is_alone = False
        self._awaits_answer = False
        """Whether it tripped, and the cluster has not said yet what it makes of that."""
        self._lease: tuple[str, float] | None = None
        self._ask_after = self._asked_until = -math.inf

    def begin(self) -> None:
        """Calls will come from a new event loop, perhaps in a new process."""
        self._sync.begin()

    # ------------------------------------------------------------------ before a call

    async def ask(self) -> Admission:
        """Leave for one call; a probe's place is asked of the cluster, by one caller at a time.

        Raises:
            CircuitOpenError: The circuit is open, or its probes are under way.
        """
        if self._begin_to_ask():
            await self._wait_for_answer()
        return self.admit()

    def admit(self) -> Admission:
        """As `ask`, with what is known now."""
        with self._lock:
            now = self._clock()
            admission = self._admission(now)
            circuit = self.circuit
            wait, reason, state = circuit.retry_after(now), circuit.reason, circuit.state
            self._note()
        self._announce()
        if admission is None:
            raise CircuitOpenError(self.name, wait, reason, state.value)
        return admission

    def _admission(self, now: float) -> Admission | None:
        circuit = self.circuit
        if circuit.standing is not None or not self._is_ruled_by_cluster():
            admission = circuit.admit(now)
            self._is_alone |= admission is not None and admission is not circuit.standing
            return admission
        if self._lease is None or circuit.state is not State.HALF_OPEN:
            return None
        (token, until), self._lease = self._lease, None
        if until <= now:
            return None
        probe = _Probe(circuit.generation, token)
        circuit.grant(probe, now, until - now)
        return probe

    def _begin_to_ask(self) -> bool:
        """Whether this caller asks."""
        with self._lock:
            now, circuit = self._clock(), self.circuit
            if circuit.standing is not None or not self._is_ruled_by_cluster():
                return False
            earliest = max(circuit.open_until, self._ask_after, self._asked_until)
            if self._lease is not None or now < earliest:
                return False
            self._asked_until = now + _NO_ANSWER
            return True

    async def _wait_for_answer(self) -> None:
        """Until the answer is here, but not for long: a slow Redis costs no call its time."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()

        def answered() -> None:
            self._asked_until = -math.inf
            with contextlib.suppress(RuntimeError):  # the asker's loop is closed by now
                loop.call_soon_threadsafe(_finish, answer)

        self._sync.ask(self, answered)
        moment = min(max(_SHORTEST_MOMENT, _ROUND_TRIPS * self._sync.round_trip), _LONGEST_MOMENT)
        await asyncio.wait({answer}, timeout=moment)

    def _is_ruled_by_cluster(self) -> bool:
        return self._sync.connected and not self._is_alone and self.circuit.mode == "enforce"

    # ------------------------------------------------------------------ after a call

    def succeeded(self, admission: Admission, duration: float) -> None:
        """A call succeeded after `duration` seconds."""
        if isinstance(admission, _Probe):
            self._judge(admission, duration, failed=False)
            return
        if admission is self.circuit.standing:
            # Without the lock: a lost success does no harm.
            self._report.calls += 1
            if duration >= self.circuit.slow_after:
                self._report.slow += 1
            if not self._is_due:
                self._send(When.SOON)
        super().succeeded(admission, duration)

    def failed(self, admission: Admission, duration: float, symptom: str = "") -> None:
        """A call failed after `duration` seconds, and the dependency is to blame."""
        if isinstance(admission, _Probe):
            self._judge(admission, duration, failed=True, symptom=symptom)
            return
        with self._lock:
            circuit = self.circuit
            counts = admission is circuit.standing
            if counts:
                self._report.calls += 1
                self._report.failed += 1
                self._report.slow += duration >= circuit.slow_after
                self._report.note(symptom)
            circuit.fail(admission, duration, self._clock(), symptom)
            if counts and circuit.state is State.OPEN:
                self._is_alone = self._awaits_answer = True
                self._report.tripped = circuit.reason
            self._weigh()
            self._note()
        self._announce()
        self._send(When.NOW if self._awaits_answer else When.NEXT)

    def denied(self, admission: Admission, symptom: str, pause: float = 0.0) -> None:
        """A call was answered and not served: no outage, and seen all the same by all workers."""
        if isinstance(admission, _Probe):
            self._deny(admission, symptom, pause)
            return
        if admission is self.circuit.standing:
            with self._lock:
                self._report.note(symptom)
            if not self._is_due:
                self._send(When.SOON)
        super().denied(admission, symptom, pause)

    def _deny(self, probe: _Probe, symptom: str, pause: float) -> None:
        with self._lock:
            if self._sync.connected:
                self.circuit.release(probe)
                self.circuit.last = symptom
                milliseconds = round(min(pause, self.circuit.policy.longest_break) * 1000)
                self._report.verdicts += ((probe.token, f"met {milliseconds} {symptom}"),)
            else:
                self._is_alone = True
                self.circuit.deny(probe, self._clock(), symptom, pause=pause)
            self._note()
        self._announce()
        self._send(When.NOW)

    def released(self, admission: Admission) -> None:
        """A call ended with no verdict; a probe's place is free again at once."""
        super().released(admission)
        if isinstance(admission, _Probe):
            self._sync.give_back(self, admission.token)

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
                self._is_alone = True
                if failed:
                    self.circuit.fail(probe, duration, self._clock(), symptom)
                else:
                    self.circuit.succeed(probe, duration, self._clock())
            self._note()
        self._announce()
        self._send(When.NOW)

    def _send(self, when: When) -> None:
        self._is_due = True
        self._sync.due(self, when)

    # ------------------------------------------------------------------ by hand

    def open(self, reason: str = "by hand", *, open_for: float | None = None) -> None:
        """Open the circuit of all workers, for `open_for` seconds or as long as the policy says."""
        super().open(reason, open_for=open_for)
        seconds = self.circuit.policy.open_for if open_for is None else open_for
        self._sync.steer(self, State.OPEN, reason, open_for=seconds)

    def half_open(self, reason: str = "by hand") -> None:
        """Let probes of all workers through now."""
        super().half_open(reason)
        self._sync.steer(self, State.HALF_OPEN, reason)

    def close(self, reason: str = "by hand") -> None:
        """Close the circuit of all workers."""
        super().close(reason)
        self._sync.steer(self, State.CLOSED, reason)

    def change(self, policy: BreakerPolicy, reason: str = "by hand") -> None:
        """Go on by another policy, which the other workers must be given too."""
        self.subject.policy = policy_as_json(policy)
        super().change(policy, reason)

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

    def could_not_tell(self, report: Report) -> None:
        """Redis is away: what probes showed is decided here."""
        with self._lock:
            now, circuit = self._clock(), self.circuit
            self._awaits_answer = False
            for _, verdict in report.verdicts:
                if circuit.state is State.HALF_OPEN:
                    self._is_alone = True
                    if verdict == "ok":
                        circuit.close(now, "after its probes succeeded")
                    elif verdict.startswith("met "):
                        _, milliseconds, met = verdict.split(" ", 2)
                        pause = int(milliseconds) / 1000.0
                        circuit.reopen(now, f"after a probe met {met}", pause)
                    else:
                        circuit.open(now, f"after a probe {verdict}")
            self._note()
        self._announce()

    def learn(
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
            is_new |= announced and self._is_alone and there.version == subject.version
            if rejoined or (answers is not None and answers.tripped):
                self._awaits_answer = False
            if not (is_new or rejoined):
                return
            subject.version = there.version
            is_decided = announced or rejoined or circuit.policy.quorum == 1 or not self._is_alone
            is_closed = there.state is State.CLOSED
            if circuit.mode != "enforce" or (is_closed and (self._awaits_answer or not is_decided)):
                return
            self._is_alone = self._awaits_answer = False
            if is_closed and circuit.standing is not None:
                return
            self._lease = None
            self._report.calls = self._report.failed = self._report.slow = 0
            self._report.causes = {}
            circuit.adopt(
                there.state,
                self._clock(),
                there.reason,
                remaining=there.remaining,
                opens=there.opens,
            )
            self._note()
        self._announce()

    def answer(self, there: Announcement, token: str, lease: float | None) -> None:
        """What the cluster said to a request for a probe's place; `lease` in seconds if granted."""
        self.learn(there)
        with self._lock:
            now = self._clock()
            if lease is not None and self.circuit.state is State.HALF_OPEN:
                self._lease = (token, now + lease)
            elif there.state is State.HALF_OPEN:
                self._ask_after = now + min(max(there.remaining, 0.01), _ASK_AGAIN)

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

    def break_to_plant(self) -> Break | None:
        """What to plant in a Redis that lost its state, or did not hear of this break."""
        with self._lock:
            circuit = self.circuit
            left = circuit.open_until - self._clock()
            by_itself = self._is_alone and circuit.policy.quorum > 1
            if circuit.mode != "enforce" or not 0 < left < math.inf or by_itself:
                return None
            return Break(left, circuit.opens, circuit.reason)

    def renew_after_fork(self) -> None:
        """In a child process: no lock, report or lease of the parent's is ours."""
        self.take_lock(threading.RLock())
        self._is_due = False
        self._report = Report(0)
        self._lease = None
        self._asked_until = -math.inf

    @property
    def is_alone(self) -> bool:
        """Whether this worker opened or tries by itself, and not by what the cluster decided."""
        return self._is_alone and self.circuit.standing is None
