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


def health_after(*symptoms: str | None) -> Health:
    return health_of("llm.openai", tally=outcomes(*symptoms).tally())


def test_three_failures_of_three_calls_are_failing_and_one_of_one_is_not() -> None:
    assert health_after(*[KEY] * 3).condition == "failing"
    assert health_after(*[KEY] * 2).condition == "healthy"
    assert health_after(KEY, *[None] * 20).condition == "healthy"


def test_a_sentence_has_the_status_the_numbers_and_advice() -> None:
    health = health_after(*[KEY] * 55)
    assert str(health) == "llm.openai answers 401 to 55 of 55 calls: check its key"
    health = health_after(*[KEY] * 5, None, *["ConnectError"] * 2, None, None)
    assert health.sentence == "llm.openai answers 401 to 5 of 10 calls, and 2 more failed"
    health = health_after(*["ConnectError"] * 5)
    assert str(health) == (
        "llm.openai fails in 5 of 5 calls with ConnectError: check its address and the network"
    )
    health = health_after(*["ReadTimeout", "Odd", "ReadTimeout"] * 2)
    assert health.sentence == "llm.openai fails in 6 of 6 calls, most with ReadTimeout"


def test_the_sentence_about_invalid_results_says_why_the_last_was_one() -> None:
    health = health_after(*["InvalidResultError (with an HTML page)"] * 3)
    assert health.sentence.endswith("3 of 3 calls with InvalidResultError (with an HTML page)")
    assert health.brief == "llm.openai fails in all calls with InvalidResultError"


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
        ("HTTP 418 (Teapot)", "check what is sent"),
        ("AttemptTimeoutError", "more time"),
        ("InvalidPasswordError", "key or password"),
        ("SSLError", "the network"),
        ("InvalidResultError (with an HTML page)", "any proxy before it"),
        ("Odd", ""),
    ],
)
def test_advice_by_symptom(symptom: str, advice: str) -> None:
    assert advice in advice_for(symptom)
    if not advice:
        assert (
            str(health_after(*[symptom] * 3)) == f"llm.openai fails in 3 of 3 calls with {symptom}"
        )


def test_a_share_of_one_in_ten_is_uneasy_and_of_one_in_two_failing() -> None:
    assert condition_of(100, 9, 0) == "healthy"
    assert condition_of(100, 10, 0) == "degraded"
    assert condition_of(9, 3, 0) == "healthy"
    assert condition_of(100, 50, 0) == "failing"


def test_failing_ends_after_a_run_of_successes_that_is_no_chance() -> None:
    assert condition_of(155 + 2, 155, 2) == "failing"
    assert condition_of(155 + 3, 155, 3) == "healthy"
    assert condition_of(20 + 9, 10, 9) == "degraded"
    assert condition_of(20 + 10, 10, 10) == "healthy"


def test_a_steady_share_of_failures_does_not_end_failing() -> None:
    chance = random.Random(1)
    seen = outcomes(*[KEY if chance.random() < 0.5 else None for _ in range(1000)])
    assert seen.condition in {"degraded", "failing"}


def test_old_outcomes_expire_with_the_next_attempts_only() -> None:
    seen = outcomes(*[KEY] * 3)
    assert (seen.calls, seen.failed) == (3, 3)
    seen.on_success(61.0)
    assert (seen.calls, seen.failed, seen.tally().causes) == (1, 0, {})
    assert seen.condition == "healthy"


def test_the_number_of_causes_is_bounded() -> None:
    seen = outcomes(*[f"Odd{number}" for number in range(50)])
    causes = seen.tally().causes
    assert len(causes) == MOST_CAUSES + 1
    assert causes["other"] == 50 - MOST_CAUSES
    assert "of 50 calls, most" not in health_of("x", tally=seen.tally()).sentence


@given(st.lists(st.tuples(st.floats(0, 300), st.sampled_from([None, "A", "B", "HTTP 500 (C)"]))))
def test_the_sums_equal_those_of_the_kept_outcomes(steps: list[tuple[float, str | None]]) -> None:
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


def test_an_open_circuit_decides_the_condition() -> None:
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
            "check its own status page or log",
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
def test_the_last_failure_of_an_open_circuit_gives_the_advice(reason: str, advice: str) -> None:
    for state in ("open", "half-open"):
        if state == "half-open" and reason.startswith("by "):
            continue
        assert health_of("llm", state=state, reason=reason).advice == advice


def test_every_condition_has_a_level() -> None:
    levels = {each: level_of(each) for each in CONDITIONS}
    assert levels["healthy"] == levels["unmonitored"] == 0
    assert levels["degraded"] == levels["paused"] == 1
    assert levels["failing"] == levels["down"] == levels["isolated"] == levels["probing"] == 2


def test_a_reason_shows_a_change_by_hand_and_an_isolation() -> None:
    assert is_by_hand("by ops on host")
    assert is_isolation(with_author("they migrate: soon", "ops on host", isolates=True))
    assert is_isolation(with_author("", "ops on host", isolates=True))
    assert not is_isolation(with_author("so (isolated)", "ops on host"))
    assert not is_isolation("after all (isolated)")
    assert not is_by_hand("after 5 failures in a row")
