"""The breaker around a circuit: its clock and lock, its errors, and pybreaker's face."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pybreaker
import pytest

from lightrag_resilience import (
    BreakerPolicy,
    CircuitOpenError,
    PolicyError,
    State,
)
from lightrag_resilience.breakers import Breaker
from lightrag_resilience.events import Event, Events, StateChanged
from support.breakers import Clock, breaker, refusal_of, trip

THREADS = 8


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# ---------------------------------------------------------------------- refusals


def test_a_rejection_names_circuit_reason_and_retry_after() -> None:
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
    made.acquire()
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


def test_a_refusal_carries_its_own_way_and_no_other() -> None:
    made = breaker()
    trip(made)
    depths = set[int]()
    for _ in range(100):
        trace, depth = refusal_of(made).__traceback__, 0
        while trace is not None:
            trace, depth = trace.tb_next, depth + 1
        depths.add(depth)
    assert len(depths) == 1


# ---------------------------------------------------------------------- outcomes


def test_a_full_window_of_quick_successes_still_sees_failures() -> None:
    made = breaker(window_calls=10, min_calls=10, failure_rate=0.2, consecutive_failures=None)
    for _ in range(30):
        made.on_success(made.acquire(), 0.1)
    assert made.snapshot().calls == 10
    for _ in range(2):
        made.on_failure(made.acquire(), 0.1)
    assert made.state is State.OPEN


def test_a_quick_success_that_changes_nothing_reads_no_clock() -> None:
    clock = Clock()
    made = breaker(clock, window_calls=10)
    for _ in range(10):
        made.on_success(made.acquire(), 0.1)
    admission, asked = made.acquire(), clock.asked
    made.on_success(admission, 0.1)
    assert clock.asked == asked


def test_a_slow_success_counts_in_a_spotless_window() -> None:
    made = breaker(window_calls=4, min_calls=4, slow_call=1.0, slow_rate=0.25)
    for _ in range(4):
        made.on_success(made.acquire(), 0.1)
    made.on_success(made.acquire(), 1.0)
    assert made.state is State.OPEN


def test_a_success_ends_a_row_of_failures() -> None:
    made = breaker()
    made.on_failure(made.acquire(), 0.1)
    made.on_success(made.acquire(), 0.1)
    made.on_failure(made.acquire(), 0.1)
    assert made.state is State.CLOSED


def test_a_released_probe_frees_its_slot() -> None:
    clock = Clock()
    made = breaker(clock)
    trip(made)
    clock.now += 5.0
    made.release(made.acquire())
    made.on_success(made.acquire(), 0.1)
    assert made.state is State.CLOSED


def test_a_call_that_is_collected_under_the_lock_frees_its_probe() -> None:
    dying: list[Any] = []

    class Collecting(Clock):
        def __call__(self) -> float:
            while dying:
                made.release(dying.pop())
            return super().__call__()

    clock = Collecting()
    made = breaker(clock)
    trip(made)
    clock.now += 5.0
    dying.append(made.acquire())
    asking = threading.Thread(target=made.acquire, daemon=True)
    asking.start()
    asking.join(10)
    assert not asking.is_alive()
    assert not dying
    assert made.circuit.snapshot(clock.now).probes == 1


def test_moments_are_read_in_the_order_of_what_happens_in_them() -> None:
    class Watching(Clock):
        lock: Any = None

        def __call__(self) -> float:
            if self.lock is not None:
                under_lock.append(self.lock._is_owned())
            return super().__call__()

    under_lock: list[bool] = []
    clock = Watching()
    made = breaker(clock)
    clock.lock = made._lock
    admission = made.acquire()
    made.on_success(admission, 0.1)
    made.on_failure(admission, 0.1)
    made.snapshot()
    for change in (made.open, made.half_open, made.close):
        change()
    made.set_mode("disabled")
    assert under_lock == [True] * 8


@pytest.mark.usefixtures("restless_threads")
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
                    made.acquire()
                except CircuitOpenError:
                    continue
                granted += 1
            return granted

        with ThreadPoolExecutor(THREADS) as pool:
            granted = [pool.submit(ask) for _ in range(THREADS)]
            assert sum(outcome.result(10) for outcome in granted) == 3


@pytest.mark.usefixtures("restless_threads")
def test_each_trial_has_its_quota_while_threads_fail_probe_after_probe() -> None:
    moments = itertools.count()
    policy = BreakerPolicy(probes=2, open_for=5.0, open_growth=1.0, probe_lease=80_000.0)
    made = Breaker("llm.openai", policy, clock=lambda: float(next(moments)))
    made.open()

    def hammer() -> list[int]:
        trials = []
        for _ in range(1000):
            try:
                probe = made.acquire()
            except CircuitOpenError:
                continue
            trials.append(probe.generation)
            made.on_failure(probe, 0.1)
        return trials

    with ThreadPoolExecutor(THREADS) as pool:
        hammering = [pool.submit(hammer) for _ in range(THREADS)]
        granted = Counter(trial for done in hammering for trial in done.result(30))
    assert len(granted) > 100
    assert max(granted.values()) <= 2
    assert made.snapshot().opens == len(granted) + 1


@pytest.mark.usefixtures("restless_threads")
def test_threads_together_lose_no_count() -> None:
    made = breaker(mode="metrics-only", window_calls=10_000)

    def fail() -> None:
        for _ in range(500):
            made.on_failure(made.acquire(), 0.1)

    with ThreadPoolExecutor(THREADS) as pool:
        for outcome in [pool.submit(fail) for _ in range(THREADS)]:
            outcome.result(10)
    assert made.snapshot().failed == THREADS * 500


# ---------------------------------------------------------------------- announcements


def test_each_change_is_published_once_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    clock, events, published = Clock(), Events(), list[Event]()
    events.subscribe(published.append)
    made = breaker(clock, events)
    with caplog.at_level(logging.INFO, "lightrag_resilience"):
        trip(made)
        clock.now += 5.0
        probe = made.acquire()
        made.on_success(probe, 0.1)
    changes = [(e.old, e.new, e.generation) for e in published if isinstance(e, StateChanged)]
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


def test_a_listener_may_force_the_state_of_its_breaker() -> None:
    events, published = Events(), list[str]()
    made = breaker(events=events)

    def reopen(event: Event) -> None:
        if isinstance(event, StateChanged):
            published.append(event.new)
            if event.new == "closed":
                made.open("by a listener")

    events.subscribe(reopen)
    made.open()
    made.close()
    assert published == ["open", "closed", "open"]
    assert made.pybreaker.current_state == "open"


def test_a_change_of_mode_is_published() -> None:
    events, published = Events(), list[Event]()
    events.subscribe(published.append)
    made = breaker(events=events)
    made.set_mode("forced-open", "for maintenance")
    (change,) = published
    assert isinstance(change, StateChanged)
    assert change.reason == "for maintenance"
    assert made.snapshot().mode == "forced-open"


@pytest.mark.parametrize(
    ("way", "state"), [("open", "open"), ("half_open", "half-open"), ("close", "closed")]
)
def test_a_change_by_hand_is_published_with_its_reason(way: str, state: str) -> None:
    events, published = Events(), list[Event]()
    old, mode = ("closed", "enforce") if way == "open" else ("open", "forced-open")
    made = breaker(events=events, mode=mode)
    events.subscribe(published.append)
    getattr(made, way)("for maintenance")
    (change,) = published
    assert isinstance(change, StateChanged)
    assert (change.old, change.new, change.reason) == (old, state, "for maintenance")
    assert made.snapshot().reason == "for maintenance"


def test_half_open_is_published_before_its_outcome() -> None:
    clock, events, published = Clock(), Events(), list[Event]()
    made = breaker(clock, events)
    trip(made)
    events.subscribe(published.append)
    clock.now += 5.0
    made.acquire()
    assert [event.new for event in published if isinstance(event, StateChanged)] == ["half-open"]


def test_a_listener_that_raises_is_dropped_and_the_call_goes_on() -> None:
    events, published = Events(), list[Event]()

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    events.subscribe(broken)
    events.subscribe(published.append)
    made = breaker(events=events)
    trip(made)
    made.close()
    assert made.acquire() is made.circuit.shared_admission
    assert len(published) == 2
    assert broken not in events.subscribers


def test_no_thread_waits_for_a_listener_of_another_threads_change() -> None:
    events, published = Events(), list[str]()
    listening, done = threading.Event(), threading.Event()

    def lingering(event: Event) -> None:
        listening.set()
        assert done.wait(10)
        assert isinstance(event, StateChanged)
        published.append(event.new)

    events.subscribe(lingering)
    made = breaker(events=events)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(made.open)
        assert listening.wait(10)
        made.half_open()
        made.close()
        assert made.snapshot().state is State.CLOSED
        assert not published
        done.set()
        opening.result(10)
    assert published == ["open", "half-open", "closed"]


def test_listeners_are_called_without_the_lock() -> None:
    clock, events, published = Clock(), Events(), list[State]()
    made = breaker(clock, events)
    with ThreadPoolExecutor(1) as pool:
        events.subscribe(lambda _: published.append(pool.submit(made.snapshot).result(10).state))
        trip(made)
        clock.now += 5.0
        made.on_success(made.acquire(), 0.1)
        made.open()
        made.half_open()
        made.close()
        made.set_mode("forced-open")
    opened, tried, closed = State.OPEN, State.HALF_OPEN, State.CLOSED
    assert published == [opened, tried, closed, opened, tried, closed, opened]


def test_changes_left_by_an_interrupted_publication_are_published_next() -> None:
    events, published = Events(), list[str]()
    made = breaker(events=events)

    def interrupted(event: Event) -> None:
        assert isinstance(event, StateChanged)
        published.append(event.new)
        if event.new == "open":
            made.half_open()
            raise KeyboardInterrupt

    events.subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.open()
    made.close()
    assert published == ["open", "half-open", "closed"]


@pytest.mark.parametrize("mode", ["metrics-only", "disabled"])
def test_a_mode_that_never_rejects_admits_calls_of_an_open_circuit(mode: Any) -> None:
    made = breaker()
    trip(made)
    made.set_mode(mode)
    trip(made)
    made.acquire()
    made.set_mode("enforce")
    trip(made)
    assert refusal_of(made).state == "open"


def test_outcomes_that_change_no_state_publish_nothing() -> None:
    events, published = Events(), list[Event]()
    made = breaker(events=events)
    events.subscribe(published.append)
    made.close()
    made.set_mode("metrics-only")
    made.set_mode("enforce")
    assert published == []
    made.open()
    made.open()
    assert len(published) == 1


def test_a_mode_that_does_not_exist_is_refused() -> None:
    made = breaker()
    with pytest.raises(PolicyError, match=r"must be one of enforce, .* not 'Forced-Open'"):
        made.set_mode("Forced-Open")  # type: ignore[arg-type]
    assert made.snapshot().mode == "enforce"


@pytest.mark.anyio
async def test_callers_that_wait_for_a_closed_circuit_go_on_in_the_order_in_which_they_came() -> (
    None
):
    made, gone_on = breaker(), list[int]()

    async def wait(number: int) -> None:
        assert await made.wait_until_closed(60.0) == number
        gone_on.append(number)

    made.open()
    async with asyncio.TaskGroup() as waiting:
        for number in range(50):
            waiting.create_task(wait(number))
        await asyncio.sleep(0)
        made.close()
    assert gone_on == list(range(50))
