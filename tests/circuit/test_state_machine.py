"""The decisions of a circuit, moment by moment."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.circuit.state_machine import Admission, Circuit


def circuit(**changes: Any) -> Circuit:
    fields = {"failure_rate": 0.5, "min_calls": 4, "window_calls": 10} | changes
    return Circuit(BreakerPolicy(**fields), now=0.0)


def admitted(circuit: Circuit, now: float = 0.0) -> Admission:
    admission = circuit.acquire(now)
    assert admission is not None
    return admission


def state_of(circuit: Circuit) -> State:
    return circuit.state


def record(circuit: Circuit, results: str, *, now: float = 0.0, duration: float = 0.0) -> None:
    """Calls one after the other: ``F`` fails, ``S`` succeeds."""
    for result in results:
        admission = admitted(circuit, now)
        (circuit.on_failure if result == "F" else circuit.on_success)(admission, duration, now)


def opened(now: float = 0.0, **changes: Any) -> Circuit:
    made = circuit(**changes)
    made.open(now, "for a test")
    return made


# ---------------------------------------------------------------------- closed


def test_a_new_circuit_admits_all_calls_with_one_admission() -> None:
    made = circuit()
    assert state_of(made) is State.CLOSED
    assert made.acquire(0.0) is made.acquire(0.0) is made.shared_admission
    assert made.retry_after(0.0) is None


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("FFF", State.CLOSED),  # fewer than min_calls
        ("FFFF", State.OPEN),
        ("SFSF", State.OPEN),
        ("FSSS", State.CLOSED),
        ("SSSFF", State.CLOSED),  # 40 %
        ("SSSSSSSSSSFFFF", State.CLOSED),  # 4 of the last 10
        ("SSSSSSSSSSFFFFF", State.OPEN),
    ],
)
def test_a_failure_rate_over_enough_calls_opens_the_circuit(results: str, state: State) -> None:
    made = circuit()
    record(made, results)
    assert state_of(made) is state


def test_successes_between_do_not_hide_that_most_calls_fail() -> None:
    made = circuit(failure_rate=0.7, min_calls=8, window_calls=20)
    record(made, "FFFSFFFS")
    assert state_of(made) is State.OPEN
    assert made.reason == "after 6 of 8 calls failed"


def test_consecutive_failures_open_the_circuit_before_min_calls() -> None:
    made = circuit(consecutive_failures=3, min_calls=10)
    record(made, "FFSFF")
    assert state_of(made) is State.CLOSED
    record(made, "F")
    assert state_of(made) is State.OPEN
    assert made.reason == "after 3 failures in a row"


def test_without_that_setting_consecutive_failures_open_nothing() -> None:
    made = circuit(min_calls=10)
    record(made, "F" * 9)
    assert state_of(made) is State.CLOSED


def test_slow_calls_open_the_circuit() -> None:
    made = circuit(slow_call=2.0, slow_rate=0.5)
    record(made, "SS", duration=1.9)
    record(made, "S", duration=2.0)
    assert state_of(made) is State.CLOSED
    record(made, "S", duration=9.0)
    assert state_of(made) is State.OPEN
    assert made.reason == "after 2 of 4 calls were slow"


def test_only_measuring_opens_nothing_for_slow_calls_either() -> None:
    made = circuit(mode="metrics-only", slow_call=1.0, slow_rate=0.1)
    record(made, "S" * 20, duration=5.0)
    assert state_of(made) is State.CLOSED
    assert made.snapshot(0.0).slow == 10


def test_a_slow_failure_is_both() -> None:
    made = circuit(slow_call=1.0, failure_rate=1.0, slow_rate=0.5)
    record(made, "SSS")
    record(made, "FF", duration=1.0)
    assert made.window.slow == made.window.failed == 2


def test_what_has_no_verdict_changes_nothing() -> None:
    made = circuit()
    for _ in range(100):
        made.release(admitted(made))
    assert made.window.calls == 0
    assert state_of(made) is State.CLOSED


def test_a_time_window_trips_on_what_is_recent() -> None:
    made = circuit(window="time", window_seconds=10.0)
    record(made, "FF", now=1.0)
    record(made, "FF", now=15.0)
    assert state_of(made) is State.CLOSED
    record(made, "FF", now=16.0)
    assert state_of(made) is State.OPEN


# ---------------------------------------------------------------------- open


def test_an_open_circuit_rejects_calls_until_its_break_is_over() -> None:
    made = opened(open_for=5.0)
    assert made.acquire(4.999) is None
    assert made.retry_after(1.0) == 4.0
    assert made.acquire(5.0) is not None
    assert state_of(made) is State.HALF_OPEN


def test_breaks_grow_up_to_a_cap_and_begin_anew_after_a_recovery() -> None:
    made = circuit(open_for=2.0, open_growth=2.0, open_max=10.0)
    now, breaks = 0.0, []
    made.open(now, "first")
    for _ in range(5):
        breaks.append(made.open_until - now)
        now = made.open_until
        made.on_failure(admitted(made, now), 0.0, now)
    assert breaks == [2.0, 4.0, 8.0, 10.0, 10.0]
    now = made.open_until
    made.on_success(admitted(made, now), 0.0, now)
    assert state_of(made) is State.CLOSED
    made.open(now, "again")
    assert made.open_until - now == 2.0


def test_half_open_by_hand_is_no_recovery() -> None:
    made = opened(open_for=2.0, open_growth=2.0)
    made.half_open(1.0, "by hand")
    made.on_failure(admitted(made, 1.0), 0.0, 1.0)
    assert made.open_until == 5.0


def test_a_break_that_is_over_has_no_wait_left() -> None:
    assert opened(open_for=5.0).retry_after(9.0) == 0.0


def test_a_recovered_circuit_forgets_the_failures_that_opened_it() -> None:
    made = circuit(consecutive_failures=3)
    record(made, "SFFF")
    made.on_success(admitted(made, 5.0), 0.0, 5.0)
    record(made, "FF", now=5.0)
    assert state_of(made) is State.CLOSED
    assert made.snapshot(5.0).calls == made.streak == 2


def test_growth_without_end_stays_a_number() -> None:
    made = circuit(open_growth=10.0, open_max=86_400.0)
    for _ in range(1000):
        made.half_open(0.0, "try")
        made.open(0.0, "again")
    assert made.open_until == 86_400.0


def test_opening_twice_by_hand_restarts_the_break_and_does_not_lengthen_it() -> None:
    made = opened(open_for=5.0)
    made.open(2.0, "again")
    assert made.open_until == 7.0
    assert made.opens == 1


# ---------------------------------------------------------------------- half-open


@pytest.mark.parametrize("quota", [1, 3])
def test_half_open_admits_exactly_its_quota_of_probes(quota: int) -> None:
    made = opened(probes=quota, open_for=5.0)
    probes = [made.acquire(5.0) for _ in range(50)]
    assert sum(probe is not None for probe in probes) == quota
    assert made.retry_after(5.0) == 1.0


def test_all_probes_must_succeed() -> None:
    made = opened(probes=2)
    first, second = admitted(made, 9.0), admitted(made, 9.0)
    made.on_success(first, 0.0, 9.0)
    assert state_of(made) is State.HALF_OPEN
    assert made.acquire(9.0) is None  # proven ones count against the quota
    made.on_success(second, 0.0, 9.0)
    assert state_of(made) is State.CLOSED
    assert made.window.calls == 0


def test_one_failed_probe_reopens_the_circuit_and_voids_the_others() -> None:
    made = opened(probes=3)
    probes = [admitted(made, 9.0) for _ in range(3)]
    made.on_success(probes[0], 0.0, 9.0)
    made.on_failure(probes[1], 0.0, 9.0)
    assert state_of(made) is State.OPEN
    assert made.reason == "after a probe failed"
    made.on_success(probes[2], 0.0, 9.0)
    assert state_of(made) is State.OPEN
    assert made.opens == 2


def test_a_slow_probe_is_no_recovery() -> None:
    made = opened(slow_call=1.0)
    made.on_success(admitted(made, 9.0), 1.0, 9.0)
    assert state_of(made) is State.OPEN


def test_a_released_probe_frees_its_slot_at_once() -> None:
    made = opened()
    probe = admitted(made, 9.0)
    assert made.acquire(9.0) is None
    made.release(probe)
    assert made.is_valid(admitted(made, 9.0))
    assert not made.is_valid(probe)


def test_a_released_probe_takes_nothing_from_the_proven_ones() -> None:
    made = opened(probes=2)
    first, second = admitted(made, 9.0), admitted(made, 9.0)
    made.on_success(first, 0.0, 9.0)
    made.release(second)
    made.on_success(admitted(made, 9.0), 0.0, 9.0)
    assert state_of(made) is State.CLOSED


def test_each_probe_has_a_lease_of_its_own() -> None:
    made = opened(probes=2, probe_lease=60.0)
    admitted(made, 10.0)
    second = admitted(made, 40.0)
    admitted(made, 70.0)
    assert made.acquire(99.9) is None
    assert made.is_valid(second)


def test_a_probe_released_while_leases_are_counted_breaks_nothing() -> None:
    class Collected(dict[Admission, float]):
        """Leases the last of which the garbage collector releases whenever one is used."""

        def get(self, key: Admission, default: Any = None) -> Any:
            lease = super().get(key, default)
            self.pop(key, None)
            return lease

        def pop(self, key: Admission, default: Any = None) -> Any:
            super().pop(next(reversed(self), key), None)
            return super().pop(key, default)

    for probes in (1, 2, 3):
        made = opened(probes=probes, probe_lease=10.0)
        for _ in range(probes):
            admitted(made, 9.0)
        made._leases = Collected(made._leases)
        assert made.acquire(19.0) is not None


def test_a_hung_probe_loses_its_lease_and_its_verdict() -> None:
    made = opened(probe_lease=60.0)
    hung = admitted(made, 9.0)
    assert made.acquire(68.9) is None
    admitted(made, 69.0)
    made.on_success(hung, 0.0, 70.0)
    made.on_failure(hung, 0.0, 70.0)
    assert state_of(made) is State.HALF_OPEN


@pytest.mark.parametrize("verdict", ["on_success", "on_failure"])
def test_a_hung_probe_gives_no_verdict_even_without_calls_meanwhile(verdict: str) -> None:
    made = opened(probe_lease=60.0)
    hung = admitted(made, 9.0)
    assert made.snapshot(69.0).probes == 0
    getattr(made, verdict)(hung, 0.0, 69.0)
    assert made.state is State.HALF_OPEN


def test_half_open_by_hand_twice_keeps_the_quota() -> None:
    made = circuit()
    made.half_open(0.0, "by hand")
    admitted(made)
    made.half_open(0.0, "by hand")
    assert made.acquire(0.0) is None


def test_why_a_probe_was_no_recovery_is_said() -> None:
    for verdict, why in (
        ("on_success", "after a probe was slow"),
        ("on_failure", "after a probe failed"),
    ):
        made = opened(slow_call=1.0)
        getattr(made, verdict)(admitted(made, 9.0), 2.0, 9.0)
        assert made.reason == why


def test_a_probe_has_one_say() -> None:
    made = opened(probes=2)
    probe = admitted(made, 9.0)
    made.on_success(probe, 0.0, 9.0)
    made.on_success(probe, 0.0, 9.0)
    made.on_failure(probe, 0.0, 9.0)
    assert state_of(made) is State.HALF_OPEN
    assert made.probe_successes == 1


# ---------------------------------------------------------------------- late results


def test_a_late_success_closes_nothing() -> None:
    made = circuit()
    early = admitted(made)
    made.open(0.0, "meanwhile")
    made.on_success(early, 0.0, 1.0)
    assert state_of(made) is State.OPEN
    admitted(made, 5.0)
    made.on_success(early, 0.0, 5.0)
    assert state_of(made) is State.HALF_OPEN


def test_a_probe_of_an_earlier_trial_has_no_say_in_the_next() -> None:
    made = opened(probes=2)
    early = [admitted(made, 9.0) for _ in range(2)]
    made.open(9.0, "meanwhile")
    present = admitted(made, 20.0)
    before = made.snapshot(20.0)
    made.on_success(early[0], 0.0, 20.0)
    made.on_failure(early[1], 0.0, 20.0)
    made.release(early[0])
    assert made.snapshot(20.0) == before
    assert made.is_valid(present)


def test_late_failures_prolong_no_break() -> None:
    made = circuit()
    early = [admitted(made) for _ in range(20)]
    record(made, "FFFF")
    until, generation = made.open_until, made.generation
    for admission in early:
        made.on_failure(admission, 0.0, 4.0)
    assert (made.open_until, made.generation) == (until, generation)


def test_a_late_failure_does_not_count_in_the_next_life() -> None:
    made = circuit()
    early = admitted(made)
    made.open(0.0, "meanwhile")
    made.close(1.0, "well again")
    made.on_failure(early, 0.0, 2.0)
    assert made.window.calls == 0
    assert not made.is_valid(early)


def test_a_late_success_does_not_end_a_row_of_failures_in_the_next_life() -> None:
    made = circuit(consecutive_failures=2)
    early = admitted(made)
    made.close(1.0, "by hand")
    record(made, "F", now=1.0)
    made.on_success(early, 0.0, 2.0)
    assert (made.streak, made.window.calls) == (1, 1)


# ---------------------------------------------------------------------- modes and hands


def test_forced_open_stays_open_whatever_time_passes() -> None:
    made = circuit(mode="forced-open")
    assert made.acquire(1e9) is None
    assert made.retry_after(1e9) is None
    made.open(1e9, "again")
    assert made.open_until == math.inf


@pytest.mark.parametrize("way_out", ["close", "half_open"])
def test_a_hand_lifts_the_force(way_out: str) -> None:
    made = circuit(mode="forced-open")
    getattr(made, way_out)(1.0, "by hand")
    assert made.mode == "enforce"
    assert made.acquire(1.0) is not None


def test_lifting_the_force_brings_the_policys_mode_back() -> None:
    made = circuit(mode="metrics-only")
    made.set_mode("forced-open", 1.0, "incident")
    made.close(2.0, "over")
    assert made.mode == "metrics-only"


@pytest.mark.parametrize(("mode", "remembered"), [("disabled", 0), ("metrics-only", 10)])
def test_modes_that_never_refuse(mode: Any, remembered: int) -> None:
    made = circuit(mode=mode, consecutive_failures=1)
    record(made, "F" * 20)
    assert state_of(made) is State.CLOSED
    assert made.window.calls == remembered


def test_a_mode_can_change_and_change_back() -> None:
    made = circuit()
    made.set_mode("forced-open", 1.0, "incident")
    assert made.acquire(2.0) is None
    made.set_mode("enforce", 3.0, "over")
    record(made, "FFFF", now=3.0)
    assert state_of(made) is State.OPEN


def test_a_snapshot_says_what_an_operator_wants_to_know() -> None:
    made = circuit(window="time", window_seconds=10.0, min_calls=10)
    record(made, "FS", now=1.0)
    shown = made.snapshot(3.0)
    assert (shown.state, shown.mode, shown.calls, shown.failed) == (State.CLOSED, "enforce", 2, 1)
    assert (shown.since, shown.retry_after, shown.opens) == (3.0, None, 0)
    assert made.snapshot(30.0).calls == 0
    made.open(30.0, "for a test")
    shown = made.snapshot(31.0)
    assert (shown.state, shown.reason, shown.since) == (State.OPEN, "for a test", 1.0)
    assert (shown.retry_after, shown.opens, shown.probes) == (4.0, 1, 0)
    admitted(made, 36.0)
    assert made.snapshot(36.0).probes == 1
