"""The decisions of a circuit breaker: no clock, no lock, no I/O.

`now` is in seconds, of any clock that does not step back. Each change of state begins a new
generation, and every admission carries the generation it was given in. An outcome of an older
generation is dropped: a late success cannot close a circuit, a late failure cannot prolong a break.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from lightrag_resilience.config.policies import BreakerPolicy, Breaks, Mode

from .evidence import Evidence
from .outcomes import OutcomeCounts, Outcomes
from .sliding_window import make_window

__all__ = ["Admission", "Circuit", "Snapshot", "State"]

_LONG_AGO = -math.inf
_LATER = 1.0  # seconds to wait while probes are under way: their verdict is near


class State(enum.Enum):
    """The states of a circuit, named as in pybreaker."""

    CLOSED = "closed"
    """Calls pass, and their outcomes are recorded."""
    OPEN = "open"
    """Calls are rejected until the end of the break."""
    HALF_OPEN = "half-open"
    """Probes pass, all other calls are rejected."""


_HALF_OPEN = State.HALF_OPEN  # a member of an enum takes Python 3.11 as long as a call


class Admission:
    """The breaker's permission to make one call, not to be confused with `AdmissionController`.

    All callers of a closed circuit share one; each probe has its own.
    """

    __slots__ = ("generation",)

    def __init__(self, generation: int) -> None:
        self.generation = generation


_NO_LEASES: dict[Admission, float] = {}  # shared by all that are not half-open, to save memory


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A circuit at one moment.

    Attributes:
        state: Closed, open or half-open.
        mode: The mode in force.
        reason: Why it is in this state, as a clause.
        generation: Grows with each change of state.
        calls: Calls in the window.
        failed: How many of them failed.
        slow: How many of them were slow.
        opens: Breaks in a row with no recovery between.
        retry_after: Seconds to the next probe, None while closed.
        probes: Probes under way.
        since: Seconds since the last change of state.
        tally: How all recent attempts ended, including failures that are not counted here; None
            where none failed since the last change of state.
    """

    state: State
    mode: str
    reason: str
    generation: int
    calls: int
    failed: int
    slow: int
    opens: int
    retry_after: float | None
    probes: int
    since: float
    tally: OutcomeCounts | None = None


class Circuit:
    """Decides which calls are admitted and when the state changes.

    Args:
        policy: When to open, and for how long.
        now: Monotonic seconds.
        counts_all: Whether successes that change nothing here must be recorded all the same.
        renewals: How often the lease of a probe is renewed while its call goes on. Calls of this
            process are known to go on, so their leases have the whole length from the start.
    """

    __slots__ = (
        "_counts_all",
        "_entered",
        "_leases",
        "_renewals",
        "evidence",
        "generation",
        "ignores_successes",
        "is_probed",
        "is_spotless",
        "last",
        "mode",
        "open_until",
        "opens",
        "outage_began",
        "outcomes",
        "policy",
        "probe_successes",
        "probed_until",
        "reason",
        "shared_admission",
        "slow_after",
        "state",
        "streak",
        "window",
    )

    def __init__(
        self, policy: BreakerPolicy, now: float, *, counts_all: bool = False, renewals: int = 0
    ) -> None:
        self._counts_all = counts_all
        self._renewals = renewals
        self.is_spotless = False
        """Whether one more quick success changes nothing."""
        self.ignores_successes = False
        """Whether one more success, quick or slow, changes nothing and need not be counted.

        True while the window is full of successes, slow calls are not watched and nothing counts
        all: then a success skips clock and lock.
        """
        self.outcomes: Outcomes | None = None
        """How all attempts ended since the first failure; None without one."""
        self.last = ""
        """The symptom of the last failure, until the circuit is closed."""
        self.evidence: Evidence | None = None
        """How calls ended since they began to fail; None while all is well."""
        self._use_policy(policy)
        self.mode: Mode = policy.mode
        self.generation = 0
        self.opens = 0
        self.shared_admission: Admission | None = None
        """The admission that any caller may take without `acquire`; None unless closed."""
        self.open_until = _LONG_AGO
        """When the next probe is due; every call before that is rejected."""
        self.is_probed = False
        """Whether a background probe can look for the recovery: breaks are short then."""
        self.probed_until = _LONG_AGO
        """Until then the calls of users are no probes: a background probe is expected to be sent.

        Its sender moves this on with each step, so that calls probe again soon after it has died.
        """
        self.outage_began: float | None = None
        """When it opened, if it has not closed since."""
        self._leases = _NO_LEASES
        self.set_mode(policy.mode, now, "since the start")

    @property
    def is_browned_out(self) -> bool:
        """Whether calls fail, and some pass."""
        return self.evidence is not None and self.evidence.shows_brownout

    @property
    def failures_to_open(self) -> float:
        """How many more failures in a row open the circuit; infinite while thresholds decide."""
        evidence = self.evidence
        if evidence is None or self.shared_admission is None or self.mode != "enforce":
            return math.inf
        return evidence.failures_to_open if self.policy.decides_by_evidence else math.inf

    # ------------------------------------------------------------------ before a call

    def acquire(self, now: float, *, in_background: bool = False) -> Admission | None:
        """Admit one call, or a background probe; None where it is rejected."""
        if self.shared_admission is not None:
            return self.shared_admission
        if now < self.probed_until and not in_background:
            return None
        if self.state is State.OPEN:
            if now < self.open_until:
                return None
            # No timer ends a break: the first call after it does.
            last = f", the last failure {self.last}" if self.last else ""
            self._enter(State.HALF_OPEN, now, f"while probes are under way{last}")
        return self._acquire_probe(now)

    def _acquire_probe(self, now: float) -> Admission | None:
        self._drop_lapsed(now)
        if len(self._leases) + self.probe_successes >= self.policy.probes:
            return None
        probe = Admission(self.generation)
        self.track_probe(probe, now, self.policy.lease)
        return probe

    def _drop_lapsed(self, now: float) -> None:
        # The garbage collector may end an abandoned call right here, which releases its probe.
        for probe in list(self._leases):
            if self._leases.get(probe, math.inf) <= now:
                self._leases.pop(probe, None)

    def is_valid(self, admission: Admission) -> bool:
        """Whether an admission still holds, after its call has waited for capacity."""
        return admission is self.shared_admission or admission in self._leases

    def retry_after(self, now: float) -> float | None:
        """Seconds until a call may be admitted again; None where that is unknown."""
        if self.shared_admission is not None or self.open_until == math.inf:
            return None
        left = max(self.open_until - now, 0.0)
        if self.state is State.OPEN and (left or now >= self.probed_until):
            return left
        return _LATER

    # ------------------------------------------------------------------ after a call

    def on_success(self, admission: Admission, duration: float, now: float) -> None:
        """Record that a call succeeded after `duration` seconds."""
        if admission.generation != self.generation:
            return
        slow = duration >= self.slow_after
        if self.state is State.HALF_OPEN:
            self._record_probe(admission, now, bad="was slow" if slow else "")
        else:
            self.streak = 0
            if self.evidence is not None:
                self._note_success(self.evidence)
            if self.outcomes is not None:
                self._outlast(self.outcomes, now)
            self._record(now, failed=False, slow=slow)

    def on_failure(
        self, admission: Admission, duration: float, now: float, symptom: str = ""
    ) -> None:
        """Record that a call failed, and that the dependency is to blame.

        Args:
            admission: Its admission.
            duration: Seconds that it took.
            now: Monotonic seconds.
            symptom: Status and error class, such as ``HTTP 503 (InternalServerError)``.
        """
        if admission.generation != self.generation:
            return
        if self.state is _HALF_OPEN:
            if admission in self._leases:
                self.last = symptom
            self._record_probe(
                admission, now, bad=f"failed with {symptom}" if symptom else "failed"
            )
        else:
            self.streak += 1
            self._note(now, symptom, counts=True)
            self._record(now, failed=True, slow=duration >= self.slow_after)

    def on_uncounted_failure(
        self, admission: Admission, now: float, symptom: str, *, pause: float
    ) -> None:
        """Record an answer such as 401 or 429: the dependency is up, and the caller not served.

        That is no outage and no recovery. After a probe the circuit opens for `pause` seconds more;
        breaks do not grow by it.
        """
        if admission.generation != self.generation:
            return
        if self.state is not _HALF_OPEN:
            self._note(now, symptom, counts=False)
            return
        self._drop_lapsed(now)
        if self._leases.pop(admission, None) is not None:
            self.last = symptom
            self.reopen(now, f"after a probe met {symptom}", pause)

    def _note(self, now: float, symptom: str, *, counts: bool) -> None:
        """Remember how an attempt failed; from here on successes are counted, too."""
        if self.mode == "disabled":
            return
        self.last = symptom
        if counts:
            if self.evidence is None or self.evidence.is_stale(now):
                self.evidence = Evidence()
            self.evidence.failed_at = now
            self.evidence.on_failure()
        if self.outcomes is None:
            self.outcomes = Outcomes(self.policy.window_seconds)
        self.outcomes.on_failure(now, symptom, counts=counts)
        self.is_spotless = self.ignores_successes = False

    def _outlast(self, outcomes: Outcomes, now: float) -> None:
        """Count a success; enough of them end the record of failures."""
        outcomes.on_success(now)
        if not outcomes.failed or outcomes.is_over:
            self._forget()

    def _note_success(self, evidence: Evidence) -> None:
        evidence.on_success()
        if evidence.is_over:
            self.evidence = None

    def _forget(self) -> None:
        self.outcomes = None
        self.last = ""

    def release(self, admission: Admission) -> None:
        """End a call without a verdict: cancelled, rejected later, or the caller's own fault."""
        self._leases.pop(admission, None)

    def _record_probe(self, probe: Admission, now: float, *, bad: str) -> None:
        self._drop_lapsed(now)
        if self._leases.pop(probe, None) is None:
            return
        if bad:
            self.open(now, f"after a probe {bad}")
            return
        self.probe_successes += 1
        if self.probe_successes >= self.policy.probes:
            self._recover(now)

    def _recover(self, now: float) -> None:
        evidence = self.evidence
        self.close(now, "after its probes succeeded")
        if evidence is not None:
            self.evidence = evidence
            self._note_success(evidence)

    def _record(self, now: float, *, failed: bool, slow: bool) -> None:
        if self.mode == "disabled":
            return
        window = self.window
        window.record(now, failed=failed, slow=slow)
        if window.all_successes:
            self.is_spotless = self.outcomes is None and self.evidence is None
            is_quick = self.slow_after == math.inf
            self.ignores_successes = self.is_spotless and is_quick and not self._counts_all
        elif self.is_spotless:
            self.is_spotless = self.ignores_successes = False
        if (
            (window.failed or window.slow)
            and self.mode == "enforce"
            and (why := self._trip_reason())
        ):
            self.open(now, why)

    def _trip_reason(self) -> str | None:
        policy, window = self.policy, self.window
        if policy.consecutive_failures is not None:
            is_down = self.streak >= policy.consecutive_failures
        else:
            evidence = self.evidence if policy.decides_by_evidence else None
            is_down = evidence is not None and evidence.shows_down
        if is_down:
            return f"after {self.streak} failures in a row{self._the_last()}"
        if window.calls < policy.min_calls:
            return None
        if policy.failure_rate is not None and window.failed / window.calls >= policy.failure_rate:
            return f"after {window.failed} of {window.calls} calls failed{self._the_last()}"
        if window.slow / window.calls >= policy.slow_rate:
            return f"after {window.slow} of {window.calls} calls were slow"
        return None

    def _the_last(self) -> str:
        return f", the last {self.last}" if self.last else ""

    # ------------------------------------------------------------------ changes of state

    def open(self, now: float, reason: str) -> None:
        """Reject calls: for longer with each break in a row, up to the policy's cap."""
        if self.state is not State.OPEN:
            self.opens += 1
        self._enter(State.OPEN, now, reason)
        forced = self.mode == "forced-open"
        self.open_until = math.inf if forced else now + self.breaks.length(self.opens)

    def reopen(self, now: float, reason: str, pause: float) -> None:
        """Reject calls for `pause` seconds more, in the same break: its probe decided nothing."""
        self._enter(State.OPEN, now, reason)
        self.open_until = now + min(max(pause, 0.0), self.breaks.longest)

    def half_open(self, now: float, reason: str) -> None:
        """Admit probes. Lifts the mode forced-open; does nothing if half-open already."""
        if self.state is State.HALF_OPEN:
            return
        self._lift_force()
        self._enter(State.HALF_OPEN, now, reason)

    def close(self, now: float, reason: str) -> None:
        """Admit all calls and forget all outcomes. Lifts the mode forced-open."""
        self._lift_force()
        self.opens = 0
        self.evidence = None
        self._enter(State.CLOSED, now, reason)

    def restore(  # noqa: PLR0913 - most by name
        self,
        state: State,
        now: float,
        reason: str,
        *,
        remaining: float,
        opens: int,
        outage: float = 0.0,
    ) -> None:
        """Adopt a state that was decided elsewhere, with `remaining` seconds of a break.

        `outage` is for how many seconds the circuit has not been closed, as far as is known there.
        """
        self.opens = opens
        self._enter(state, now, reason)
        if state is State.OPEN:
            self.open_until = now + remaining
        elif state is State.CLOSED and self.evidence is not None:
            self._note_success(self.evidence)
        if self.outage_began is not None:
            self.outage_began = min(self.outage_began, now - outage)

    def track_probe(self, probe: Admission, now: float, lease: float) -> None:
        """Count a probe until its lease is over; it may have been admitted by Redis."""
        self._leases[probe] = now + lease * (1 + self._renewals)

    @property
    def breaks(self) -> Breaks:
        """How long it is open each time."""
        return self.policy.breaks(is_probed=self.is_probed)

    @property
    def probes(self) -> list[Admission]:
        """Probes under way."""
        return list(self._leases)

    def lose_probes(self) -> None:
        """Forget all probes in a child process: their calls go on in the parent."""
        self._leases.clear()

    def set_mode(self, mode: Mode, now: float, reason: str) -> None:
        """Force open, disable, only measure, or enforce; all but forced-open start closed."""
        self.mode = mode
        if mode == "forced-open":
            self._enter(State.OPEN, now, reason)
            self.open_until = math.inf
        else:
            self.close(now, reason)

    def update_policy(self, policy: BreakerPolicy, now: float, reason: str) -> None:
        """Use another policy. The state stays, unless the mode changes."""
        before = self.policy
        self._use_policy(policy)
        if policy.mode != before.mode:
            self.set_mode(policy.mode, now, reason)
        elif self.state is State.CLOSED and policy != before:
            self.window = make_window(policy, now)
            self.evidence = None
            self._forget()
            self.is_spotless = self.ignores_successes = False
        elif self.state is State.HALF_OPEN and self.probe_successes >= policy.probes:
            self._recover(now)

    def _use_policy(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.slow_after = math.inf if policy.slow_call is None else policy.slow_call

    def _lift_force(self) -> None:
        if self.mode == "forced-open":
            self.mode = "enforce" if self.policy.mode == "forced-open" else self.policy.mode

    def _enter(self, state: State, now: float, reason: str) -> None:
        self._entered = now
        if state is State.CLOSED:
            self.outage_began = None
        elif self.outage_began is None:
            self.outage_began = now
        self.state = state
        self.reason = reason
        self.open_until = _LONG_AGO
        self.generation += 1
        self.window = make_window(self.policy, now)
        self.outcomes = None
        self.is_spotless = self.ignores_successes = False
        if state is State.CLOSED:
            self.last = ""
        self.streak = 0
        self.probe_successes = 0
        self._leases = {} if state is State.HALF_OPEN else _NO_LEASES
        self.shared_admission = Admission(self.generation) if state is State.CLOSED else None

    def snapshot(self, now: float) -> Snapshot:
        """The circuit at this moment, for people."""
        self.window.advance(now)
        self._drop_lapsed(now)
        outcomes = self.outcomes
        is_known = outcomes is not None and not outcomes.is_stale(now)
        return Snapshot(
            state=self.state,
            mode=self.mode,
            reason=self.reason,
            generation=self.generation,
            calls=self.window.calls,
            failed=self.window.failed,
            slow=self.window.slow,
            opens=self.opens,
            retry_after=self.retry_after(now),
            probes=len(self._leases),
            since=now - self._entered,
            tally=outcomes.tally() if outcomes is not None and is_known else None,
        )
