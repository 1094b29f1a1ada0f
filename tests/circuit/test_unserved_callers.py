"""Callers that are not served although the circuit is closed: what the log says."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lightrag_resilience import (
    BreakerPolicy,
    CircuitOpenError,
    State,
)
from lightrag_resilience.breakers import Breaker
from lightrag_resilience.events import Events, HealthChanged, StateChanged

# ---------------------------------------------------------------------- callers that are not served


class Unserved:
    """A breaker whose dependency answers, and serves no caller."""

    def __init__(self, **policy: Any) -> None:
        self.now = 100.0
        self.events = Events()
        self.published: list[Any] = []
        self.events.subscribe(self.published.append, HealthChanged, StateChanged)
        policy_ = BreakerPolicy(**policy)
        self.breaker = Breaker("llm", policy_, events=self.events, clock=lambda: self.now)

    def deny(self, times: int = 1, symptom: str = "HTTP 401 (Odd)", pause: float = 1.0) -> None:
        for _ in range(times):
            self.breaker.on_uncounted_failure(self.breaker.acquire(), symptom, pause)

    def succeed(self, times: int) -> None:
        for _ in range(times):
            self.breaker.on_success(self.breaker.acquire(), 0.1)

    def open(self) -> None:
        for _ in range(6):
            self.breaker.on_failure(self.breaker.acquire(), 0.1, "ConnectError")
        assert self.breaker.state is State.OPEN


def levels(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_401_to_every_call_logs_one_warning_and_its_end_one_info(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lightrag_resilience")
    rig = Unserved()
    rig.succeed(100)
    rig.deny(155)
    assert rig.breaker.state is State.CLOSED
    rig.succeed(200)
    assert levels(caplog) == [
        ("WARNING", "llm answers 401 to 3 of 3 calls: check its key"),
        ("INFO", "llm serves its callers again"),
    ]
    assert [change.condition for change in rig.published] == ["failing", "healthy"]
    assert rig.breaker.circuit.ignores_successes


def test_a_single_400_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rig = Unserved()
    rig.succeed(100)
    rig.deny(1, "HTTP 400 (Odd)")
    rig.succeed(50)
    assert not caplog.records
    rig.now += 100.0
    rig.succeed(1)
    assert rig.breaker.circuit.ignores_successes


def test_an_opening_circuit_logs_only_its_own_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Unserved()
    rig.open()
    assert levels(caplog) == [
        ("WARNING", "Circuit 'llm' is open after 6 failures in a row, the last ConnectError")
    ]
    rig.now += 5.0
    rig.succeed(1)
    assert rig.breaker.state is State.CLOSED
    assert rig.breaker.snapshot().tally is None


def test_a_failure_rate_below_the_threshold_is_published(caplog: pytest.LogCaptureFixture) -> None:
    rig = Unserved(consecutive_failures=None)
    for _ in range(20):
        rig.succeed(3)
        rig.breaker.on_failure(rig.breaker.acquire(), 0.1, "HTTP 503 (Odd)")
    ((_, said),) = levels(caplog)
    assert said == "llm answers 503 to 4 of 13 calls: check its own status page or log"


def test_a_probe_that_is_answered_and_not_served_names_the_time_of_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lightrag_resilience")
    rig = Unserved()
    rig.open()
    rig.now += 5.0
    for _ in range(60):
        rig.deny()
        with pytest.raises(CircuitOpenError) as refused:
            rig.breaker.acquire()
        assert refused.value.retry_after == 1.0
        assert "open after a probe met HTTP 401 (Odd); next probe in 1.0 s" in str(refused.value)
        rig.now += 1.0
    assert rig.breaker.snapshot().opens == 1
    assert len(caplog.records) == 4  # the same again is no news
    probe = rig.breaker.acquire()
    with pytest.raises(CircuitOpenError, match=r"half-open .*, the last failure HTTP 401 \(Odd\)"):
        rig.breaker.acquire()
    rig.breaker.on_success(probe, 0.1)
    assert rig.breaker.state is State.CLOSED


def test_an_outage_that_ends_in_what_waiting_does_not_mend_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Unserved()
    rig.open()
    rig.now += 5.0
    rig.breaker.on_failure(rig.breaker.acquire(), 0.1, "HTTP 503 (Odd)")
    caplog.clear()
    for _ in range(20):
        rig.now += 20.0
        rig.deny()
    assert levels(caplog) == [
        ("WARNING", "Circuit 'llm' is open after a probe met HTTP 401 (Odd): check its key")
    ]


def test_after_a_probe_with_a_wrong_request_the_next_probe_is_due_at_once() -> None:
    rig = Unserved()
    rig.open()
    rig.now += 5.0
    rig.deny(3, "HTTP 400 (Odd)", pause=0.0)
    assert rig.breaker.circuit.reason == "after a probe met HTTP 400 (Odd)"
    rig.succeed(1)
    assert rig.breaker.state is State.CLOSED


def test_a_circuit_opened_by_hand_names_no_failure_while_probed() -> None:
    rig = Unserved()
    rig.deny(1)
    rig.now += 100.0
    rig.succeed(1)
    rig.breaker.open("isolated by ops", open_for=3.0)
    rig.now += 3.0
    rig.breaker.acquire()
    assert rig.breaker.circuit.reason == "while probes are under way"


def test_a_disabled_breaker_remembers_no_failure() -> None:
    rig = Unserved(mode="disabled")
    rig.deny(9)
    assert rig.breaker.snapshot().tally is None
    assert not rig.published
