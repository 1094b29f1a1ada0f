"""What a breaker remembers, beside a plain model that remembers everything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience import BreakerPolicy
from lightrag_resilience.circuit.sliding_window import CountWindow, TimeWindow, make_window

outcomes = st.tuples(st.booleans(), st.booleans())


def counts(window: Any) -> tuple[int, int, int]:
    return window.calls, window.failed, window.slow


def expected(remembered: list[tuple[bool, bool]]) -> tuple[int, int, int]:
    failed = sum(failed for failed, _ in remembered)
    return len(remembered), failed, sum(slow for _, slow in remembered)


@given(st.integers(1, 20), st.lists(outcomes, max_size=80))
def test_a_count_window_holds_the_last_calls(size: int, calls: list[tuple[bool, bool]]) -> None:
    window = CountWindow(size)
    for number, (failed, slow) in enumerate(calls, start=1):
        window.record(0.0, failed=failed, slow=slow)
        last = calls[:number][-size:]
        assert counts(window) == expected(last)
        assert window.all_successes == (len(last) == size and expected(last)[1:] == (0, 0))


@given(st.lists(st.tuples(st.floats(0, 3), outcomes), max_size=60), st.floats(0, 1e6))
def test_a_time_window_holds_the_calls_of_the_last_ten_slices(
    steps: list[tuple[float, tuple[bool, bool]]], start: float
) -> None:
    window, now = TimeWindow(10.0, start), start
    seen: list[tuple[int, tuple[bool, bool]]] = []
    for passed, (failed, slow) in steps:
        now += passed
        window.record(now, failed=failed, slow=slow)
        seen.append((int(now // 1.0), (failed, slow)))
        present = int(now // 1.0)
        assert counts(window) == expected([call for at, call in seen if at > present - 10])
        assert not window.all_successes


@given(
    st.sampled_from([1.0, 10.0, 60.0]),
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(-30, 30), outcomes), max_size=60),
)
def test_a_time_window_takes_a_call_of_an_earlier_moment_for_a_present_one(
    seconds: float, start: float, steps: list[tuple[float, tuple[bool, bool]]]
) -> None:
    window, now, width = TimeWindow(seconds, start), start, seconds / 10
    present = int(now // width)
    seen: list[tuple[int, tuple[bool, bool]]] = []
    for passed, (failed, slow) in steps:
        now += passed
        present = max(present, int(now // width))
        window.record(now, failed=failed, slow=slow)
        seen.append((present, (failed, slow)))
        assert counts(window) == expected([call for at, call in seen if at > present - 10])


def test_a_time_window_forgets_while_nothing_happens() -> None:
    window = TimeWindow(60.0, now=0.0)
    window.record(1.0, failed=True, slow=True)
    window.advance(59.9)
    assert counts(window) == (1, 1, 1)
    window.advance(61.0)
    assert counts(window) == (0, 0, 0)
    window.advance(1e9)
    assert counts(window) == (0, 0, 0)


@pytest.mark.parametrize("later", [100.0, 99.0, 0.0])
def test_a_clock_that_stops_or_steps_back_loses_no_calls(later: float) -> None:
    window = TimeWindow(60.0, now=0.0)
    window.record(100.0, failed=True, slow=False)
    window.record(later, failed=False, slow=False)
    assert counts(window) == (2, 1, 0)
    window.advance(161.0)
    assert counts(window) == (0, 0, 0)


def test_time_alone_changes_no_count_window() -> None:
    window = CountWindow(3)
    window.record(0.0, failed=True, slow=False)
    window.advance(1e9)
    assert counts(window) == (1, 1, 0)


@pytest.mark.parametrize(("kind", "cls"), [("count", CountWindow), ("time", TimeWindow)])
def test_a_policy_chooses_its_window(kind: Any, cls: type) -> None:
    assert type(make_window(BreakerPolicy(window=kind), 0.0)) is cls
