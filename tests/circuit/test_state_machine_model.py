"""Whatever happens to a circuit, in whatever order, its promises hold."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.circuit.state_machine import Admission, Circuit

durations = st.sampled_from([0.0, 1.0, 2.0, 50.0])


class CircuitMachine(RuleBasedStateMachine):
    admissions: Bundle[Admission] = Bundle("admissions")

    @initialize(
        window=st.sampled_from(["count", "time"]),
        probes=st.integers(1, 3),
        consecutive=st.none() | st.integers(1, 4),
        slow=st.none() | st.just(2.0),
        mode=st.sampled_from(["enforce", "enforce", "enforce", "metrics-only", "disabled"]),
    )
    def begin(self, window: Any, probes: int, consecutive: Any, slow: Any, mode: Any) -> None:
        self.policy = BreakerPolicy(
            mode=mode,
            window=window,
            window_calls=8,
            window_seconds=20.0,
            min_calls=4,
            failure_rate=0.5,
            consecutive_failures=consecutive,
            slow_call=slow,
            probes=probes,
            probe_lease=30.0,
            open_for=5.0,
            open_growth=2.0,
            open_max=15.0,
        )
        self.now = 0.0
        self.circuit = Circuit(self.policy, self.now)
        self.generation = self.circuit.generation
        self.proofs: set[Admission] = set()
        self.past: list[tuple[bool, bool]] = []

    def shown(self) -> Any:
        """A snapshot without what merely measures time."""
        return replace(self.circuit.snapshot(self.now), since=0.0, retry_after=None)

    def remember(self, mode: str, *, failed: bool, slow: bool) -> None:
        """What a closed circuit with a count window does with one more outcome, in plain code."""
        self.past.append((failed, slow))
        policy, calls = self.policy, self.past[-self.policy.window_calls :]
        row = self.past[-(policy.consecutive_failures or 1) :]
        trips = policy.consecutive_failures == len(row) and all(failed for failed, _ in row)
        if len(calls) >= policy.min_calls:
            trips |= sum(failed for failed, _ in calls) >= 0.5 * len(calls)
            trips |= sum(slow for _, slow in calls) >= policy.slow_rate * len(calls)
        if policy.window == "count":
            assert (self.circuit.state is State.OPEN) == (trips and mode == "enforce")
            if self.circuit.state is State.CLOSED:
                shown = self.circuit.snapshot(self.now)
                assert (shown.calls, shown.failed) == (len(calls), sum(bad for bad, _ in calls))

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 5.0, 15.0, 31.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=admissions)
    def admit(self) -> Any:
        before, until = self.circuit.state, self.circuit.open_until
        admission = self.circuit.acquire(self.now)
        if before is State.CLOSED:
            assert admission is not None
        elif before is State.OPEN:
            assert (admission is not None) == (self.now >= until)
        if admission is None:
            return multiple()
        assert admission.generation == self.circuit.generation
        assert self.circuit.is_valid(admission)
        return admission

    @rule(admission=consumes(admissions), duration=durations)
    def succeed(self, admission: Admission, duration: float) -> None:
        before, stale = self.shown(), admission.generation != self.circuit.generation
        is_content = self.circuit.ignores_successes
        quick = duration < self.circuit.slow_after
        if self.circuit.state is State.HALF_OPEN and self.circuit.is_valid(admission) and quick:
            self.proofs.add(admission)
        self.circuit.on_success(admission, duration, self.now)
        if stale or is_content:
            assert self.shown() == before
        if stale:
            return
        if before.state is State.CLOSED and before.mode != "disabled":
            self.remember(before.mode, failed=False, slow=not quick)
        if before.state is State.HALF_OPEN and self.circuit.state is State.CLOSED:
            assert len(self.proofs) == self.policy.probes

    @rule()
    def be_well(self) -> None:
        """A closed circuit is content with a window of quick successes, if slow ones are too."""
        for _ in range(self.policy.window_calls):
            if (standing := self.circuit.shared_admission) is None:  # the calls before were too bad
                return
            self.circuit.on_success(standing, 0.0, self.now)
            self.past.append((False, False))
        if self.circuit.shared_admission is None:
            return
        counts = self.policy.window == "count" and self.circuit.mode != "disabled"
        # While a failure is remembered, successes are counted beside it.
        is_clean = self.circuit.outcomes is None
        assert self.circuit.is_spotless == (counts and is_clean)
        assert self.circuit.ignores_successes == (
            counts and is_clean and self.policy.slow_call is None
        )

    @rule(admission=consumes(admissions), duration=durations)
    def fail(self, admission: Admission, duration: float) -> None:
        before, stale = self.shown(), admission.generation != self.circuit.generation
        had_a_say = self.circuit.is_valid(admission)
        self.circuit.on_failure(admission, duration, self.now)
        if stale or not had_a_say:
            assert self.shown() == before
        elif before.state is State.HALF_OPEN:
            assert self.circuit.state is State.OPEN
        elif before.mode != "disabled":
            slow = duration >= self.circuit.slow_after
            self.remember(before.mode, failed=True, slow=slow)
        assert self.circuit.state is not State.CLOSED or before.state is State.CLOSED

    @rule(admission=consumes(admissions), pause=st.sampled_from([0.0, 1.0, 60.0]))
    def deny(self, admission: Admission, pause: float) -> None:
        """An answer that serves no caller counts for nothing, and proves nothing."""
        before, had_a_say = self.shown(), self.circuit.is_valid(admission)
        opens = self.circuit.opens
        self.circuit.on_uncounted_failure(admission, self.now, "HTTP 401 (Odd)", pause=pause)
        if not had_a_say:
            assert self.shown() == before
        elif before.state is State.HALF_OPEN:
            assert (self.circuit.state, self.circuit.opens) == (State.OPEN, opens)
            assert self.circuit.open_until == self.now + min(pause, 15.0)
            assert self.circuit.reason == "after a probe met HTTP 401 (Odd)"
            self.generation = self.circuit.generation
            self.proofs.clear()
            self.past.clear()
        else:
            assert self.shown() == replace(before, tally=self.shown().tally)
            assert (self.circuit.outcomes is None) == (before.mode == "disabled")

    @rule(admission=consumes(admissions))
    def release(self, admission: Admission) -> None:
        before = self.shown()
        is_probe = self.circuit.state is State.HALF_OPEN and self.circuit.is_valid(admission)
        self.circuit.release(admission)
        assert self.shown() == replace(before, probes=before.probes - is_probe)

    @rule(way=st.sampled_from(["open", "half_open", "close"]))
    def force(self, way: str) -> None:
        getattr(self.circuit, way)(self.now, "by hand")

    @rule(mode=st.sampled_from(["enforce", "metrics-only", "disabled", "forced-open"]))
    def change_mode(self, mode: Any) -> None:
        self.circuit.set_mode(mode, self.now, "by hand")
        assert self.circuit.mode == mode

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "circuit"):
            return
        circuit, shown = self.circuit, self.circuit.snapshot(self.now)
        assert circuit.generation >= self.generation
        if circuit.generation != self.generation:
            self.generation = circuit.generation
            self.proofs.clear()
            self.past.clear()
            if circuit.state is State.OPEN and circuit.mode != "forced-open":
                # 0: a probe by hand met an answer that is no outage, so that none is counted yet.
                length = min(5.0 * 2.0 ** max(circuit.opens - 1, 0), 15.0)
                assert circuit.open_until - self.now == length
        assert (circuit.shared_admission is not None) == (circuit.state is State.CLOSED)
        assert shown.probes + circuit.probe_successes <= self.policy.probes
        assert 0 <= max(shown.failed, shown.slow) <= shown.calls
        assert shown.calls <= self.policy.window_calls or self.policy.window == "time"
        if circuit.mode == "forced-open":
            assert circuit.state is State.OPEN
            assert circuit.open_until == math.inf
        elif circuit.state is State.OPEN:
            assert circuit.open_until - self.now <= self.policy.breaks().longest
        else:
            assert circuit.open_until == -math.inf
        if circuit.outcomes is not None:
            assert shown.tally is not None
            assert 0 < shown.tally.failed == sum(shown.tally.causes.values())
            assert shown.tally.failed + shown.tally.run <= shown.tally.calls
            assert not circuit.is_spotless
        if circuit.ignores_successes:
            assert circuit.state is State.CLOSED
            assert circuit.streak == 0
        if circuit.state is not State.HALF_OPEN:
            assert shown.probes == circuit.probe_successes == 0


CircuitMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestCircuitMachine = pytest.mark.no_cover(CircuitMachine.TestCase)
