"""pybreaker's interface of a breaker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pybreaker
import pytest

from lightrag_resilience import (
    State,
    UnsupportedCallError,
)
from support.breakers import Clock, breaker, refusal_of, trip


class Recorder(pybreaker.CircuitBreakerListener):
    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.changes.append((old_state.name, new_state.name))


# ---------------------------------------------------------------------- pybreaker's face


def test_pybreaker_listeners_are_notified_of_each_change() -> None:
    made, listener = breaker(), Recorder()
    made.pybreaker.add_listener(listener)
    trip(made)
    made.half_open()
    made.close()
    assert listener.changes == [("closed", "open"), ("open", "half-open"), ("half-open", "closed")]


def test_a_pybreaker_listener_that_raises_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            raise ZeroDivisionError

    made, listener = breaker(), Recorder()
    made.pybreaker.add_listeners(Broken(), listener)
    trip(made)
    made.close()
    assert len(listener.changes) == 2
    assert caplog.text.count("is dropped") == 1


def test_a_pybreaker_listener_may_open_the_circuit_again() -> None:
    class Reopening(Recorder):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            super().state_change(cb, old_state, new_state)
            if new_state.name == "closed":
                cb.open()

    made, listener = breaker(), Reopening()
    made.pybreaker.add_listener(listener)
    made.half_open()
    made.close()
    assert listener.changes == [
        ("closed", "half-open"),
        ("half-open", "closed"),
        ("closed", "open"),
    ]
    assert refusal_of(made).reason == "through pybreaker"


def test_pybreaker_counts_the_failures_in_a_row() -> None:
    made = breaker(consecutive_failures=5)
    made.on_failure(made.acquire(), 0.1)
    made.on_success(made.acquire(), 0.1)
    made.on_failure(made.acquire(), 0.1)
    assert made.pybreaker.fail_counter == 1


@pytest.mark.parametrize(("in_a_row", "fail_max"), [(7, 7), (None, 10)])
def test_pybreaker_shows_the_policy(in_a_row: int | None, fail_max: int) -> None:
    shown = breaker(consecutive_failures=in_a_row, open_for=9.0, probes=3).pybreaker
    assert (shown.fail_max, shown.reset_timeout, shown.success_threshold) == (fail_max, 9.0, 3)


def test_pybreaker_shows_the_circuit() -> None:
    clock = Clock()
    made = breaker(clock, probes=2)
    shown = made.pybreaker
    assert (shown.name, shown.current_state, shown.fail_counter) == ("llm.openai", "closed", 0)
    made.on_failure(made.acquire(), 0.1)
    assert shown.fail_counter == 1
    assert shown._state_storage.opened_at is None
    made.on_failure(made.acquire(), 0.1)
    clock.now += 2.0
    assert shown.current_state == shown.state.name == "open"
    opened: Any = shown._state_storage.opened_at
    assert abs(datetime.now(UTC) - timedelta(seconds=2) - opened) < timedelta(seconds=1)
    clock.now += 3.0
    made.on_success(made.acquire(), 0.1)
    assert shown.success_counter == 1


def test_pybreaker_forces_the_state_of_the_circuit() -> None:
    made = breaker()
    assert made.pybreaker.open() is False
    assert refusal_of(made).reason == "through pybreaker"
    made.pybreaker.half_open()
    assert made.snapshot().state is State.HALF_OPEN
    made.pybreaker.close()
    assert made.snapshot().state is State.CLOSED


def test_pybreaker_cannot_run_calls_or_be_assigned_a_state() -> None:
    made = breaker()
    for use in (
        lambda: made.pybreaker.call(print, "x"),
        lambda: made.pybreaker.call_async(print, "x"),
        made.pybreaker.calling,
        lambda: made.pybreaker(print)("x"),
        lambda: setattr(made.pybreaker, "state", "open"),
    ):
        with pytest.raises(UnsupportedCallError, match=r"llm\.openai"):
            use()
    assert made.state is State.CLOSED


def test_a_foreign_pybreaker_reads_and_forces_the_circuit_through_its_storage() -> None:
    made = breaker()
    theirs = pybreaker.CircuitBreaker(state_storage=made.storage)
    made.open("by hand")
    assert theirs.current_state == "open"
    theirs.close()
    assert made.snapshot().state is State.CLOSED
    theirs.open()
    assert refusal_of(made).reason == "through pybreaker"
    theirs.half_open()
    assert made.snapshot().state is State.HALF_OPEN


def test_pybreakers_storage_keeps_no_time_of_its_own() -> None:
    made = breaker()
    made.storage.opened_at = datetime.now(UTC)
    assert made.storage.opened_at is None


def test_a_forced_circuit_stays_open_longer_than_any_break() -> None:
    made = breaker(mode="forced-open")
    made.open("by a tool", open_for=5.0)
    assert refusal_of(made).retry_after is None
    assert made.snapshot().mode == "forced-open"
