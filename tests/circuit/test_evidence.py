"""Evidence tells a dependency that is down from one of which some calls pass."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.circuit.evidence import Evidence, run_to_open
from lightrag_resilience.circuit.outcomes import are_over
from lightrag_resilience.circuit.state_machine import Circuit


def opens(share: float, calls: int, seed: int) -> int:
    """How often a circuit opens while this share of its calls fails; probes follow at once."""
    draw = random.Random(seed)
    circuit, count = Circuit(BreakerPolicy(open_for=0.1, open_growth=1.0), now=0.0), 0
    now = 0.0
    for _ in range(calls):
        now += 1.0
        admission = circuit.acquire(now)
        assert admission is not None
        before = circuit.state
        if draw.random() < share:
            circuit.on_failure(admission, 0.1, now)
        else:
            circuit.on_success(admission, 0.1, now)
        count += before is State.CLOSED and circuit.state is State.OPEN
    return count


def test_six_failures_in_a_row_after_none_open_a_circuit() -> None:
    circuit = Circuit(BreakerPolicy(), now=0.0)
    for number in range(1, 7):
        admission = circuit.acquire(0.0)
        assert admission is not None
        circuit.on_failure(admission, 0.1, 0.0, "HTTP 503 (Odd)")
        assert (circuit.state is State.OPEN) == (number == 6)
    assert circuit.reason == "after 6 failures in a row, the last HTTP 503 (Odd)"


@pytest.mark.parametrize(
    ("calls", "failed", "run"),
    [(0, 0, 6), (1, 1, 10), (100, 1, 6), (10, 3, 10), (100, 60, 26), (10_000, 9_900, 60)],
)
def test_the_run_that_opens_grows_with_the_share_of_failed_calls(
    calls: int, failed: int, run: int
) -> None:
    assert run_to_open(calls, failed) == run


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("share", "calls", "most"),
    [(0.05, 2000, 0), (0.3, 2000, 2), (0.6, 150, 12), (0.8, 150, 40)],
)
def test_a_circuit_hardly_ever_opens_while_some_calls_pass(
    share: float, calls: int, most: int
) -> None:
    """In 50 runs, one seed each. Five failures in a row open it 100 to 800 times there."""
    assert sum(opens(share, calls, seed) for seed in range(50)) <= most


def test_a_circuit_that_bad_luck_opened_needs_a_longer_run_the_next_time() -> None:
    circuit = Circuit(BreakerPolicy(open_for=1.0), now=0.0)

    def call(now: float, *, fails: bool) -> None:
        admission = circuit.acquire(now)
        assert admission is not None
        (circuit.on_failure if fails else circuit.on_success)(admission, 0.1, now)

    for _ in range(6):
        call(0.0, fails=True)
    call(2.0, fails=False)  # the probe
    for _ in range(6):
        call(2.0, fails=True)
    assert circuit.opens == 0
    circuit.close(2.0, "by hand")
    for _ in range(6):
        call(2.0, fails=True)
    assert circuit.state is State.OPEN


def test_a_brownout_of_yesterday_does_not_prolong_the_run_that_opens() -> None:
    circuit = Circuit(BreakerPolicy(), now=0.0)
    for result in "FFS" * 40:
        admission = circuit.acquire(0.0)
        assert admission is not None
        (circuit.on_failure if result == "F" else circuit.on_success)(admission, 0.1, 0.0)
    assert circuit.is_browned_out
    for _ in range(6):
        admission = circuit.acquire(601.0)
        assert admission is not None
        circuit.on_failure(admission, 0.1, 601.0)
    assert circuit.state is State.OPEN
    assert not circuit.is_browned_out


def test_a_run_of_successes_ends_the_evidence() -> None:
    circuit = Circuit(BreakerPolicy(), now=0.0)
    admission = circuit.shared_admission
    assert admission is not None
    for result in "FSFSFS" + "S" * 10:
        record = circuit.on_failure if result == "F" else circuit.on_success
        record(admission, 0.1, 0.0)
    assert circuit.evidence is None


@pytest.mark.parametrize(
    ("calls", "failed", "run", "over"),
    [
        (4, 1, 3, True),
        (3, 1, 2, False),
        (20, 5, 10, True),
        (19, 5, 9, False),
        (100, 0, 3, True),  # recent calls weigh more: the last failure counts no more
    ],
)
def test_failures_are_over_after_successes_that_are_no_accident(
    calls: int, failed: int, run: int, *, over: bool
) -> None:
    assert are_over(calls, failed, run) == over


@pytest.mark.parametrize(
    "threshold", [{"consecutive_failures": 40}, {"failure_rate": 0.9, "min_calls": 50}]
)
def test_a_threshold_that_is_set_takes_the_place_of_evidence(threshold: dict[str, float]) -> None:
    circuit = Circuit(BreakerPolicy(**threshold), now=0.0)  # type: ignore[arg-type]
    for _ in range(39):
        admission = circuit.acquire(0.0)
        assert admission is not None
        circuit.on_failure(admission, 0.1, 0.0)
    assert circuit.state is State.CLOSED


@pytest.mark.parametrize(
    ("results", "share"),
    [
        ("F" * 9, 0.0),
        ("SF" * 50, 0.0),
        ("SFF" * 30, 0.33),
        ("SFFFF" * 20, 0.59),
        ("S" + "F" * 20, 0.86),
        ("F" * 20, 0.0),
    ],
)
def test_background_calls_are_shed_in_proportion_where_most_calls_fail(
    results: str, share: float
) -> None:
    evidence = Evidence()
    for result in results:
        (evidence.on_failure if result == "F" else evidence.on_success)()
    assert evidence.shed_share == pytest.approx(share, abs=0.01)


@given(results=st.text("SF", max_size=400))
def test_counts_of_evidence_stay_within_bounds(results: str) -> None:
    evidence = Evidence()
    for result in results:
        (evidence.on_failure if result == "F" else evidence.on_success)()
        assert 0 <= evidence.failed <= evidence.calls <= 200
        assert 6 <= run_to_open(evidence.calls, evidence.failed) <= 60
        assert not (evidence.run and evidence.successes)
        assert 0.0 <= evidence.shed_share < 1.0
    passed = evidence.shows_brownout
    assert passed <= ("S" in results)
