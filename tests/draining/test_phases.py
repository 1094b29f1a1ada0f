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


def test_what_ends_in_time_is_neither_cancelled_nor_waited_for_longer() -> None:
    made = drain()
    assert made.step(0.0, 3) is Phase.RUNNING
    made.begin(100.0)
    assert made.step(100.0, 3) is Phase.DRAINING
    assert made.step(122.9, 1) is Phase.DRAINING
    assert made.step(122.95, 0) is Phase.CLOSING
    assert made.remaining(122.95) == pytest.approx(7.05)


def test_what_does_not_is_cancelled_and_the_end_comes_by_the_deadline() -> None:
    made = drain()
    made.begin(100.0)
    assert made.step(123.0, 1) is Phase.CANCELLING
    assert made.remaining(123.0) == pytest.approx(2.0)
    assert made.step(124.9, 1) is Phase.CANCELLING
    assert made.step(125.0, 1) is Phase.CLOSING
    assert made.remaining(125.0) == pytest.approx(5.0)
    assert made.deadline == 130.0


def test_a_second_signal_waits_for_nothing_any_more() -> None:
    made = drain()
    made.begin(100.0)
    made.skip_waiting(101.0)
    assert made.step(101.0, 1) is Phase.CANCELLING
    assert made.step(103.0, 1) is Phase.CLOSING


def test_a_second_signal_late_gives_no_more_time() -> None:
    made = drain()
    made.begin(100.0)
    made.skip_waiting(124.5)
    assert made.step(125.0, 1) is Phase.CLOSING


def test_the_first_may_be_in_a_hurry() -> None:
    made = drain()
    made.skip_waiting(100.0)
    assert made.step(100.0, 1) is Phase.CANCELLING


@pytest.mark.parametrize("times", [(6.0, 2.0, 5.0), (-1.0, 0.0, 0.0), (1.0, -1.0, 0.0)])
def test_times_that_do_not_add_up_are_refused(times: tuple[float, float, float]) -> None:
    with pytest.raises(PolicyError, match="raise the first, or lower the others"):
        drain(*times)


@given(
    times=st.tuples(*[st.floats(0, 100)] * 3).filter(lambda t: t[1] + t[2] <= t[0]),
    events=st.lists(st.tuples(st.floats(0, 50), st.integers(0, 2), st.booleans()), max_size=30),
)
def test_it_only_goes_forward_and_is_over_by_its_deadline(
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


def test_it_is_late_in_the_last_third_of_the_time_for_what_is_in_flight() -> None:
    made = drain()
    assert not made.is_near_deadline(1e9)
    made.begin(100.0)
    assert not made.is_near_deadline(115.3)
    assert made.is_near_deadline(115.4)
    made.skip_waiting(101.0)
    assert made.is_near_deadline(101.0)


def test_where_there_is_less_time_all_parts_become_shorter_alike() -> None:
    made = drain()
    made.shrink_to(None)
    made.shrink_to(60.0)
    assert (made.timeout, made.cancel_grace, made.close_timeout) == (30.0, 2.0, 5.0)
    made.shrink_to(15.0)
    assert (made.timeout, made.cancel_grace, made.close_timeout) == (15.0, 1.0, 2.5)


def test_it_lingers_for_a_while_but_not_in_haste() -> None:
    made = drain()
    made.begin(100.0)
    assert [made.within_grace(now, 2.0) for now in (100.0, 101.9, 102.0)] == [True, True, False]
    made.skip_waiting(101.0)
    assert not made.within_grace(101.0, 2.0)
