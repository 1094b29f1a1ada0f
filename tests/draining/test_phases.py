"""The phases of a drain, and their one deadline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience import PolicyError
from lightrag_resilience.draining.phases import Drain, Phase

ORDER = list(Phase)


def drain(timeout: float = 30.0, cancel_grace: float = 2.0, close_timeout: float = 5.0) -> Drain:
    return Drain(timeout=timeout, cancel_grace=cancel_grace, close_timeout=close_timeout)


def test_a_drain_whose_work_ends_goes_straight_to_closing() -> None:
    made = drain()
    assert made.step(0.0, 3) is Phase.RUNNING
    made.begin(100.0)
    assert made.step(100.0, 3) is Phase.DRAINING
    assert made.step(122.9, 1) is Phase.DRAINING
    assert made.step(122.95, 0) is Phase.CLOSING
    assert made.remaining(122.95) == pytest.approx(7.05)


def test_a_drain_whose_work_does_not_end_cancels_it_and_closes_by_the_deadline() -> None:
    made = drain()
    made.begin(100.0)
    assert made.step(123.0, 1) is Phase.CANCELLING
    assert made.remaining(123.0) == pytest.approx(2.0)
    assert made.step(124.9, 1) is Phase.CANCELLING
    assert made.step(125.0, 1) is Phase.CLOSING
    assert made.remaining(125.0) == pytest.approx(5.0)
    assert made.deadline == 130.0


def test_a_second_signal_skips_the_waiting() -> None:
    made = drain()
    made.begin(100.0)
    made.skip_waiting(101.0)
    assert made.step(101.0, 1) is Phase.CANCELLING
    assert made.step(103.0, 1) is Phase.CLOSING


def test_a_late_second_signal_does_not_extend_a_phase() -> None:
    made = drain()
    made.begin(100.0)
    made.skip_waiting(124.5)
    assert made.step(125.0, 1) is Phase.CLOSING


def test_a_drain_may_skip_the_waiting_from_the_start() -> None:
    made = drain()
    made.skip_waiting(100.0)
    assert made.step(100.0, 1) is Phase.CANCELLING


@pytest.mark.parametrize("times", [(6.0, 2.0, 5.0), (-1.0, 0.0, 0.0), (1.0, -1.0, 0.0)])
def test_phases_with_times_that_do_not_add_up_are_a_policy_error(
    times: tuple[float, float, float],
) -> None:
    with pytest.raises(PolicyError, match="raise the first, or lower the others"):
        drain(*times)


@given(
    times=st.tuples(*[st.floats(0, 100)] * 3).filter(lambda t: t[1] + t[2] <= t[0]),
    events=st.lists(st.tuples(st.floats(0, 50), st.integers(0, 2), st.booleans()), max_size=30),
)
def test_phases_only_advance_and_end_by_the_deadline(
    times: tuple[float, float, float], events: list[tuple[float, int, bool]]
) -> None:
    made = drain(*times)
    now, furthest = 0.0, 0
    made.begin(now)
    for later, left, is_hurry in events:
        now += later
        if is_hurry:
            made.skip_waiting(now)
        phase = ORDER.index(made.step(now, left))
        assert phase >= furthest
        assert made.remaining(now) >= 0
        assert made.deadline == times[0]
        furthest = phase
    assert made.step(made.deadline, 1) is Phase.CLOSING


def test_a_drain_is_near_its_deadline_in_the_last_third_of_the_wait() -> None:
    made = drain()
    assert not made.is_near_deadline(1e9)
    made.begin(100.0)
    assert not made.is_near_deadline(115.3)
    assert made.is_near_deadline(115.4)
    made.skip_waiting(101.0)
    assert made.is_near_deadline(101.0)


def test_shrinking_a_drain_shortens_all_phases_in_proportion() -> None:
    made = drain()
    made.shrink_to(None)
    made.shrink_to(60.0)
    assert (made.timeout, made.cancel_grace, made.close_timeout) == (30.0, 2.0, 5.0)
    made.shrink_to(15.0)
    assert (made.timeout, made.cancel_grace, made.close_timeout) == (15.0, 1.0, 2.5)


def test_the_grace_holds_for_its_seconds_unless_the_waiting_is_skipped() -> None:
    made = drain()
    made.begin(100.0)
    assert [made.within_grace(now, 2.0) for now in (100.0, 101.9, 102.0)] == [True, True, False]
    made.skip_waiting(101.0)
    assert not made.within_grace(101.0, 2.0)
