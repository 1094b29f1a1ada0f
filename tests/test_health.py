"""Whether a caller is served now, out of how all attempts ended."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.circuit.outcomes import (
    MOST_CAUSES,
    OutcomeCounts,
    Outcomes,
    condition_of,
)
from lightrag_resilience.health import CONDITIONS, Health, advice_for, health_of, level_of
from lightrag_resilience.shared_state.operator_control import with_author
from lightrag_resilience.text import is_by_hand, is_isolation

KEY = "HTTP 401 (AuthenticationError)"


def outcomes(*symptoms: str | None, seconds: float = 60.0) -> Outcomes:
    """One attempt a second; None succeeded."""
    made = Outcomes(seconds)
    for now, symptom in enumerate(symptoms):
        if symptom is None:
            made.on_success(float(now))
        else:
            made.on_failure(float(now), symptom, counts=False)
    return made


def told(*symptoms: str | None) -> Health:
    return health_of("llm.openai", tally=outcomes(*symptoms).tally())


def test_three_of_three_that_fail_are_not_well_and_one_of_one_says_nothing() -> None:
    assert told(*[KEY] * 3).condition == "failing"
    assert told(*[KEY] * 2).condition == "healthy"
    assert told(KEY, *[None] * 20).condition == "healthy"


def test_it_says_what_is_answered_to_how_many_calls_and_what_to_do() -> None:
    health = told(*[KEY] * 55)
    assert str(health) == "llm.openai answers 401 to 55 of 55 calls: check its key"
    health = told(*[KEY] * 5, None, *["ConnectError"] * 2, None, None)
    assert health.sentence == "llm.openai answers 401 to 5 of 10 calls, and 2 more failed"
    health = told(*["ConnectError"] * 5)
    assert str(health) == (
        "llm.openai fails in 5 of 5 calls with ConnectError: check its address and the network"
    )
    health = told(*["ReadTimeout", "Odd", "ReadTimeout"] * 2)
    assert health.sentence == "llm.openai fails in 6 of 6 calls, most with ReadTimeout"


@pytest.mark.parametrize(
    ("symptom", "advice"),
    [
        (KEY, "check its key"),
        ("HTTP 403 (PermissionDeniedError)", "check what its key may do"),
        ("HTTP 404 (NotFoundError)", "the name of its model"),
        ("HTTP 402 (APIStatusError)", "no credit"),
        ("HTTP 429 (RateLimitError)", "LIMIT__RPM"),
        ("HTTP 429 of a used-up quota (RateLimitError)", "quota is used up"),
        ("HTTP 500 (InternalServerError)", "its own status page"),
        ("HTTP 418 (Teapot)", "look at what is sent"),
        ("AttemptTimeoutError", "more time"),
        ("InvalidPasswordError", "key or password"),
        ("SSLError", "the network"),
        ("Odd", ""),
    ],
)
def test_each_symptom_has_an_advice_or_none(symptom: str, advice: str) -> None:
    assert advice in advice_for(symptom)
    if not advice:
        assert str(told(*[symptom] * 3)) == f"llm.openai fails in 3 of 3 calls with {symptom}"


def test_a_share_of_one_in_ten_is_uneasy_and_of_one_in_two_failing() -> None:
    assert condition_of(100, 9, 0) == "healthy"
    assert condition_of(100, 10, 0) == "degraded"
    assert condition_of(9, 3, 0) == "healthy"
    assert condition_of(100, 50, 0) == "failing"


def test_it_is_over_after_a_run_of_successes_that_is_no_chance() -> None:
    assert condition_of(155 + 2, 155, 2) == "failing"
    assert condition_of(155 + 3, 155, 3) == "healthy"
    assert condition_of(20 + 9, 10, 9) == "degraded"
    assert condition_of(20 + 10, 10, 10) == "healthy"


def test_a_steady_share_of_failures_is_not_taken_for_over() -> None:
    chance = random.Random(1)
    seen = outcomes(*[KEY if chance.random() < 0.5 else None for _ in range(1000)])
    assert seen.condition in {"degraded", "failing"}


def test_what_is_too_old_is_forgotten_with_the_next_attempts_and_not_without() -> None:
    seen = outcomes(*[KEY] * 3)
    assert (seen.calls, seen.failed) == (3, 3)
    seen.on_success(61.0)
    assert (seen.calls, seen.failed, seen.tally().causes) == (1, 0, {})
    assert seen.condition == "healthy"


def test_there_are_few_causes_whatever_fails() -> None:
    seen = outcomes(*[f"Odd{number}" for number in range(50)])
    causes = seen.tally().causes
    assert len(causes) == MOST_CAUSES + 1
    assert causes["other"] == 50 - MOST_CAUSES
    assert "of 50 calls, most" not in health_of("x", tally=seen.tally()).sentence


@given(st.lists(st.tuples(st.floats(0, 300), st.sampled_from([None, "A", "B", "HTTP 500 (C)"]))))
def test_the_sums_are_those_of_what_is_remembered(steps: list[tuple[float, str | None]]) -> None:
    seen = Outcomes(60.0)
    for now, symptom in steps:  # the clock may step back
        if symptom is None:
            seen.on_success(now)
        else:
            seen.on_failure(now, symptom, counts=symptom != "A")
        tally = seen.tally()
        assert tally.failed == sum(tally.causes.values()) <= tally.calls
        assert 0 <= tally.uncounted <= tally.failed
        assert tally.run + tally.failed <= tally.calls
        assert tally.condition == seen.condition


def test_the_circuit_decides_where_it_refuses() -> None:
    bad = OutcomeCounts(5, 5, {"HTTP 401": 5}, 0, KEY, 5)
    down = health_of("a", state="open", reason="after 5 failures in a row", tally=bad)
    assert (down.condition, str(down)) == ("down", "a is down, after 5 failures in a row")
    assert health_of("a", state="half-open").condition == "probing"
    by_hand = health_of("a", state="open", reason="by ops: they migrate")
    assert (by_hand.condition, by_hand.sentence) == (
        "isolated",
        "a is isolated, by ops: they migrate",
    )
    assert health_of("a", mode="disabled", tally=bad).condition == "unmonitored"
    assert health_of("a", cooldown=3.0).condition == "paused"
    assert health_of("a", cooldown=3.0, tally=bad).condition == "failing"
    assert health_of("a", diverged=2).condition == "degraded"
    assert health_of("a").is_well
    assert not by_hand.is_well


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (
            "after 5 failures in a row, the last HTTP 500 (Odd)",
            "look at its own status page or log",
        ),
        ("after a probe failed with ConnectError", "check its address and the network"),
        (f"after a probe met {KEY}", "check its key"),
        (
            "while probes are under way, the last failure HTTP 404 (NotFoundError)",
            "check its address and the name of its model",
        ),
        ("after 5 failures in a row", ""),
        ("by jo on vm: it met HTTP 401 (AuthenticationError)", ""),
    ],
)
def test_of_a_circuit_that_is_not_closed_the_last_failure_says_what_to_do(
    reason: str, advice: str
) -> None:
    for state in ("open", "half-open"):
        if state == "half-open" and reason.startswith("by "):
            continue
        assert health_of("llm", state=state, reason=reason).advice == advice


def test_every_look_has_a_level() -> None:
    levels = {look: level_of(look) for look in CONDITIONS}
    assert levels["healthy"] == levels["unmonitored"] == 0
    assert levels["degraded"] == levels["paused"] == 1
    assert levels["failing"] == levels["down"] == levels["isolated"] == levels["probing"] == 2


def test_reasons_tell_who_opened_and_whether_it_is_an_isolation() -> None:
    assert is_by_hand("by ops on host")
    assert is_isolation(with_author("they migrate: soon", "ops on host", isolates=True))
    assert is_isolation(with_author("", "ops on host", isolates=True))
    assert not is_isolation(with_author("so (isolated)", "ops on host"))
    assert not is_isolation("after all (isolated)")
    assert not is_by_hand("after 5 failures in a row")
