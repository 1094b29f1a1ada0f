"""Alerts come in time and no others do: hours of real guards, in virtual time, before promtool."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from support.recorded import Answers, check, record

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.once,
    pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus"),
]

FAST, SLOWLY = "LightragQueriesFail", "LightragQueriesFailSlowly"
NOT_RECOVERED = "LightragNotRecovered"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "lightrag_resilience")


def steady(seconds: float = 0.8) -> Answers:
    return lambda _: seconds


def every(count: int, share: int) -> Callable[[], bool]:
    """Of `count` calls the first `share` are meant."""
    made = 0

    def is_meant() -> bool:
        nonlocal made
        made += 1
        return made % count < share

    return is_meant


def outage(since: float, until: float, seconds: float = 0.8) -> Answers:
    def answers(minute: float) -> float:
        if since <= minute < until:
            raise ConnectionRefusedError("down")
        return seconds

    return answers


def test_hours_under_load_with_a_hiccup_now_and_then_page_no_person(tmp_path: Path) -> None:
    hiccup = every(97, 1)

    def answers(_: float) -> float:
        if hiccup():
            raise ConnectionResetError("once")
        return 0.8

    documents = {"processed": 1000, "failed": 10, "pending": 0}
    recording = record(150, answers, lambda minute: {**documents, "processed": 1000 + int(minute)})
    check(recording, {minute: set() for minute in range(5, 150, 8)}, tmp_path)


def test_an_outage_of_twenty_minutes_pages_in_five_and_again_after_fifteen(tmp_path: Path) -> None:
    recording = record(200, outage(120, 140))
    check(
        recording,
        {
            119: set(),
            123: {SLOWLY},  # as if 3 minutes of 120 were all there ever is
            125: {FAST, SLOWLY},
            134: {FAST, SLOWLY},
            137: {FAST, SLOWLY, NOT_RECOVERED},
            141: {FAST, SLOWLY},  # the circuit is closed again
            175: {SLOWLY},  # no page for what is over
        },
        tmp_path,
    )


def test_an_outage_of_twenty_seconds_pages_no_person(tmp_path: Path) -> None:
    recording = record(150, outage(120, 120.33))
    check(recording, {minute: set() for minute in (119, 121, 123, 126, 140, 149)}, tmp_path)


def test_where_nothing_asks_a_lightrag_the_calls_of_a_dependency_are_looked_at(
    tmp_path: Path,
) -> None:
    recording = record(130, outage(120, 130), queries=False)
    expected = {"LightragBudgetBurnsFast", "LightragBudgetBurnsSlowly"}
    check(recording, {119: set(), 125: expected, 129: expected}, tmp_path)


def test_one_in_a_hundred_that_fails_for_good_is_a_ticket(tmp_path: Path) -> None:
    hundredth = every(100, 1)

    def answers(_: float) -> float:
        if hundredth():
            raise ValueError("an unreadable answer")
        return 0.8

    recording = record(60, answers)
    check(recording, {20: {SLOWLY}, 40: {SLOWLY}, 59: {SLOWLY}}, tmp_path)


def test_slow_answers_are_a_ticket_after_a_quarter_of_an_hour(tmp_path: Path) -> None:
    recording = record(100, lambda minute: 3.0 if minute > 60 else 0.8)
    check(recording, {59: set(), 70: set(), 85: {"LightragSlow"}, 99: {"LightragSlow"}}, tmp_path)


def test_documents_that_fail_or_wait_are_tickets_after_half_an_hour(tmp_path: Path) -> None:
    def documents(minute: float) -> dict[str, int]:
        is_stuck = minute > 60
        done = 500 + int(min(minute, 60.0))
        return {"processed": done, "failed": 20 * is_stuck, "processing": 4}

    recording = record(140, steady(), documents)
    late = {"LightragDocumentsFail", "LightragIngestStalled"}
    check(recording, {59: set(), 80: set(), 93: {"LightragDocumentsFail"}, 125: late}, tmp_path)


class UnauthorizedError(Exception):
    status_code = 401


def test_a_key_that_is_refused_pages_although_no_circuit_opens(tmp_path: Path) -> None:
    def answers(minute: float) -> float:
        if 60 <= minute < 75:
            raise UnauthorizedError
        return 0.8

    recording = record(100, answers, queries=False)
    expected = {59: set[str](), 61: set(), 64: {"LightragCallsFail"}, 74: {"LightragCallsFail"}}
    check(recording, {**expected, 77: set(), 99: set()}, tmp_path)


def test_a_single_400_now_and_then_is_no_alert(tmp_path: Path) -> None:
    seldom = every(200, 1)

    def answers(_: float) -> float:
        if seldom():
            raise type("BadRequest", (Exception,), {"status_code": 400})
        return 0.8

    recording = record(60, answers, queries=False)
    check(recording, {minute: set() for minute in (10, 30, 59)}, tmp_path)
