"""The breaker around a circuit: its clock and lock, its errors, and pybreaker's face."""

from __future__ import annotations

import gc
import logging
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pybreaker
import pytest

from lightrag_resilience import BreakerPolicy, CircuitOpenError, State, UnsupportedCallError
from lightrag_resilience.breakers import Breaker
from lightrag_resilience.events import Event, Events, StateChanged

THREADS = 8


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard(pybreaker.CircuitBreakerListener):
    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.changes.append((old_state.name, new_state.name))


def breaker(clock: Clock | None = None, events: Events | None = None, **fields: Any) -> Breaker:
    policy = BreakerPolicy(**({"consecutive_failures": 2} | fields))
    return Breaker("llm.openai", policy, events=events, clock=clock or Clock())


def refusal_of(made: Breaker) -> CircuitOpenError:
    with pytest.raises(CircuitOpenError) as refused:
        made.admit()
    return refused.value


def trip(made: Breaker) -> None:
    for _ in range(2):
        made.failed(made.admit(), 0.1)


# ---------------------------------------------------------------------- refusals


def test_a_refusal_says_which_circuit_why_and_when_to_come_back() -> None:
    clock = Clock()
    made = breaker(clock)
    trip(made)
    clock.now += 1.0
    refusal = refusal_of(made)
    assert isinstance(refusal, pybreaker.CircuitBreakerError)
    assert (refusal.dependency, refusal.state, refusal.retry_after) == ("llm.openai", "open", 4.0)
    assert str(refusal) == (
        "Circuit 'llm.openai' is open after 2 failures in a row; next probe in 4.0 s"
    )


def test_a_refusal_while_probes_are_out_says_so() -> None:
    clock = Clock()
    made = breaker(clock)
    trip(made)
    clock.now += 5.0
    made.admit()
    assert str(refusal_of(made)) == (
        "Circuit 'llm.openai' is half-open while probes are under way; try again in 1.0 s"
    )


def test_a_forced_circuit_promises_nothing() -> None:
    assert refusal_of(breaker(mode="forced-open")).retry_after is None


def test_refusals_keep_nothing_alive() -> None:
    made = breaker()
    trip(made)
    assert refusal_of(made) is not refusal_of(made)
    tracemalloc.start()
    try:
        for _ in range(2000):
            refusal_of(made)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(2000):
            refusal_of(made)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000


# ---------------------------------------------------------------------- outcomes


def test_a_full_window_of_quick_successes_still_sees_failures() -> None:
    made = breaker(window_calls=10, min_calls=10, failure_rate=0.2, consecutive_failures=None)
    for _ in range(30):
        made.succeeded(made.admit(), 0.1)
    assert made.snapshot().calls == 10
    for _ in range(2):
        made.failed(made.admit(), 0.1)
    assert made.state is State.OPEN


def test_a_slow_success_counts_in_a_spotless_window() -> None:
    made = breaker(window_calls=4, min_calls=4, slow_call=1.0, slow_rate=0.25)
    for _ in range(4):
        made.succeeded(made.admit(), 0.1)
    made.succeeded(made.admit(), 1.0)
    assert made.state is State.OPEN


def test_a_success_ends_a_row_of_failures() -> None:
    made = breaker()
    made.failed(made.admit(), 0.1)
    made.succeeded(made.admit(), 0.1)
    made.failed(made.admit(), 0.1)
    assert made.state is State.CLOSED


def test_a_released_probe_frees_its_place() -> None:
    clock = Clock()
    made = breaker(clock)
    trip(made)
    clock.now += 5.0
    made.released(made.admit())
    made.succeeded(made.admit(), 0.1)
    assert made.state is State.CLOSED


def test_threads_together_get_exactly_the_quota_of_probes() -> None:
    for _ in range(20):
        clock = Clock()
        made = breaker(clock, probes=3)
        trip(made)
        clock.now += 5.0
        start = threading.Barrier(THREADS)

        def ask(made: Breaker = made, start: threading.Barrier = start) -> int:
            start.wait(10)
            granted = 0
            for _ in range(20):
                try:
                    made.admit()
                except CircuitOpenError:
                    continue
                granted += 1
            return granted

        with ThreadPoolExecutor(THREADS) as pool:
            granted = [pool.submit(ask) for _ in range(THREADS)]
            assert sum(outcome.result(10) for outcome in granted) == 3


def test_threads_together_lose_no_count() -> None:
    made = breaker(mode="metrics-only", window_calls=10_000)

    def fail() -> None:
        for _ in range(500):
            made.failed(made.admit(), 0.1)

    with ThreadPoolExecutor(THREADS) as pool:
        for outcome in [pool.submit(fail) for _ in range(THREADS)]:
            outcome.result(10)
    assert made.snapshot().failed == THREADS * 500


# ---------------------------------------------------------------------- announcements


def test_each_change_is_told_once_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    clock, events, heard = Clock(), Events(), list[Event]()
    events.listen(heard.append)
    made = breaker(clock, events)
    with caplog.at_level(logging.INFO, "lightrag_resilience"):
        trip(made)
        clock.now += 5.0
        probe = made.admit()
        made.succeeded(probe, 0.1)
    changes = [(e.old, e.new, e.generation) for e in heard if isinstance(e, StateChanged)]
    first = changes[0][2]
    assert changes == [
        ("closed", "open", first),
        ("open", "half-open", first + 1),
        ("half-open", "closed", first + 2),
    ]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Circuit 'llm.openai' is open after 2 failures in a row"),
        ("INFO", "Circuit 'llm.openai' is half-open while probes are under way"),
        ("INFO", "Circuit 'llm.openai' is closed after its probes succeeded"),
    ]


def test_a_listener_may_steer_the_breaker_it_hears_of() -> None:
    events, heard = Events(), list[str]()
    made = breaker(events=events)

    def reopen(event: Event) -> None:
        if isinstance(event, StateChanged):
            heard.append(event.new)
            if event.new == "closed":
                made.open("by a listener")

    events.listen(reopen)
    made.open()
    made.close()
    assert heard == ["open", "closed", "open"]
    assert made.pybreaker.current_state == "open"


def test_a_change_of_mode_is_told() -> None:
    events, heard = Events(), list[Event]()
    events.listen(heard.append)
    made = breaker(events=events)
    made.set_mode("forced-open", "for maintenance")
    (change,) = heard
    assert isinstance(change, StateChanged)
    assert change.reason == "for maintenance"
    assert made.snapshot().mode == "forced-open"


# ---------------------------------------------------------------------- pybreaker's face


def test_pybreakers_listeners_hear_each_change() -> None:
    made, heard = breaker(), Heard()
    made.pybreaker.add_listener(heard)
    trip(made)
    made.half_open()
    made.close()
    assert heard.changes == [("closed", "open"), ("open", "half-open"), ("half-open", "closed")]


def test_a_pybreaker_listener_that_raises_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            raise ZeroDivisionError

    made, heard = breaker(), Heard()
    made.pybreaker.add_listeners(Broken(), heard)
    trip(made)
    made.close()
    assert len(heard.changes) == 2
    assert caplog.text.count("is dropped") == 1


def test_pybreaker_shows_the_circuit() -> None:
    clock = Clock()
    made = breaker(clock, probes=2)
    shown = made.pybreaker
    assert (shown.name, shown.current_state, shown.fail_counter) == ("llm.openai", "closed", 0)
    made.failed(made.admit(), 0.1)
    assert shown.fail_counter == 1
    assert shown._state_storage.opened_at is None
    made.failed(made.admit(), 0.1)
    clock.now += 2.0
    assert shown.current_state == shown.state.name == "open"
    opened: Any = shown._state_storage.opened_at
    assert abs(datetime.now(UTC) - timedelta(seconds=2) - opened) < timedelta(seconds=1)
    clock.now += 3.0
    made.succeeded(made.admit(), 0.1)
    assert shown.success_counter == 1


def test_pybreaker_steers_the_circuit() -> None:
    made = breaker()
    made.pybreaker.open()
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


def test_pybreakers_storage_cannot_change_the_circuit() -> None:
    made = breaker()
    storage = made.pybreaker._state_storage
    storage.state = "open"
    storage.opened_at = datetime.now(UTC)
    assert storage.state == "closed"
    assert storage.opened_at is None
