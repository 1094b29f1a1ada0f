"""Policies: defaults per family, changes by name, and refusal of what makes no sense."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience import (
    BreakerPolicy,
    ConcurrencyPolicy,
    Guard,
    LimitPolicy,
    Policy,
    PolicyError,
    RetryPolicy,
    StreamPolicy,
    TimeoutPolicy,
)
from lightrag_resilience.config.policies import (
    _SHORTHANDS,
    FAMILIES,
    JUDGES,
    PARTS,
    Changes,
)
from lightrag_resilience.config.validation import Setting
from support.declared import POLICY_FIELDS, Bounds, bounds_of

DAY = 86_400
POLICY_TYPES: list[Any] = list(PARTS.values())
FIELDS = [
    pytest.param(part, each, id=f"{part.__name__}.{each.name}") for part, each in POLICY_FIELDS
]
NUMBERS = [
    pytest.param(part, each.name, bounds, id=f"{part.__name__}.{each.name}")
    for part, each in POLICY_FIELDS
    if (bounds := bounds_of(each.hint)) is not None
]


def accepts(part: Any, name: str, value: object) -> bool:
    try:
        made = part(**{name: value})
    except PolicyError as error:  # one field may contradict the default of another
        return f"{part.__name__}.{name} must be" not in str(error)
    return bool(getattr(made, name) == value)


def test_each_family_has_its_defaults() -> None:
    assert Policy.llm() == Policy(
        timeout=TimeoutPolicy(attempt=240.0, total=475.0, gap=60.0),
        retry=RetryPolicy(attempts=4, idempotent=True),
    )
    assert Policy.embedding() == Policy(
        timeout=TimeoutPolicy(attempt=30.0, total=57.0),
        retry=RetryPolicy(attempts=4, max_backoff=10.0, idempotent=True),
    )
    assert Policy.rerank() == Policy(
        timeout=TimeoutPolicy(attempt=30.0, total=57.0),
        retry=RetryPolicy(attempts=3, max_backoff=5.0, idempotent=True),
    )
    assert Policy.storage() == Policy(
        timeout=TimeoutPolicy(attempt=10.0, total=30.0),
        retry=RetryPolicy(attempts=3, initial_backoff=0.1, max_backoff=2.0, idempotent=False),
    )


@pytest.mark.parametrize(
    ("attempt", "own", "lease"),
    [
        (30.0, None, 40.0),
        (240.0, None, 60.0),
        (600.0, None, 122.0),
        (None, None, 60.0),
        (120.0, 7.0, 7.0),
    ],
)
def test_a_probes_lease_lasts_no_longer_than_its_renewals_need_to_cover_the_attempt(
    attempt: float | None, own: float | None, lease: float
) -> None:
    policy = Policy(breaker=BreakerPolicy(probe_lease=own), timeout=TimeoutPolicy(attempt=attempt))
    assert policy.effective_breaker.lease == lease
    assert Guard("x", policy).breaker.circuit.policy == policy.effective_breaker
    assert own or policy.effective_breaker.longest_probe > (attempt or 0)


@pytest.mark.parametrize(
    ("given", "attempt", "total"),
    [
        (240.0, 240.0, 475.0),
        (600.0, 600.0, 1195.0),
        (30.0, 30.0, 57.0),
        (1.0, 1.0, 1.9),
        (DAY, DAY, DAY),
        (math.inf, None, None),
    ],
)
def test_an_attempt_may_take_what_lightrag_gives_and_the_call_ends_before_its_queue_ends_it(
    given: float, attempt: float | None, total: float | None
) -> None:
    times = TimeoutPolicy(gap=60.0).inheriting(given)
    assert times == TimeoutPolicy(attempt=attempt, total=total, gap=60.0)


def test_the_plain_defaults_are_those_the_documentation_names() -> None:
    breaker, retry = BreakerPolicy(), RetryPolicy()
    assert (breaker.failure_rate, breaker.slow_rate, breaker.slow_call) == (None, 1.0, None)
    assert (breaker.window, breaker.window_calls, breaker.min_calls) == ("count", 100, 10)
    assert (breaker.window_seconds, breaker.consecutive_failures) == (60.0, None)
    assert breaker.breaks() == (5.0, 5.0, 1.5, 10.0)
    assert breaker.breaks(is_probed=True) == (0.8, 1.35, 1.006, 5.0)
    assert breaker.background_probe
    assert (breaker.mode, breaker.probes, breaker.probe_lease) == ("enforce", 1, None)
    assert (retry.attempts, retry.initial_backoff, retry.backoff_growth) == (3, 0.5, 2.0)
    assert (retry.max_backoff, retry.jitter, retry.max_retry_after) == (30.0, "growing", 60.0)
    assert (retry.idempotent, retry.budget) == (None, 500)
    assert LimitPolicy() == LimitPolicy(rpm=None, burst=None, max_wait=30.0)
    assert TimeoutPolicy() == TimeoutPolicy(
        attempt=30.0, total=60.0, first_item=None, gap=None, stream_total=None
    )
    assert StreamPolicy().finish_marker
    assert ConcurrencyPolicy() == ConcurrencyPolicy(
        max_concurrent=None, max_queue=1000, max_wait=30.0
    )


@pytest.mark.parametrize(("family", "limit"), [("llm", 480.0), ("embedding", 60.0)])
def test_the_total_stays_below_what_lightrag_waits_for(family: str, limit: float) -> None:
    total = Policy.for_name(family).timeout.total
    assert total is not None
    assert total < limit


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_part_of_a_name_is_its_family(family: str) -> None:
    preset = getattr(Policy, family)()
    assert preset != Policy()
    assert Policy.for_name(family) == preset
    assert Policy.for_name(f"{family}.openai.eu") == preset


@pytest.mark.parametrize("name", ["", "llmx", "LLM", "orders", "my.llm", "with_changes", ".llm"])
def test_a_name_of_no_family_gets_the_plain_defaults(name: str) -> None:
    assert Policy.for_name(name) == Policy()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_takes_changes(family: str) -> None:
    preset = getattr(Policy, family)
    changed = preset(attempts=7, rpm=60.0)
    assert changed == preset().with_changes(attempts=7, rpm=60.0)
    assert (changed.retry.attempts, changed.limit.rpm) == (7, 60.0)
    assert changed.timeout == preset().timeout


@pytest.mark.parametrize("part", PARTS)
def test_a_whole_part_can_be_changed(part: str) -> None:
    before = Policy.llm()
    other = changed_somewhere(getattr(before, part))
    changes: Any = {part: other}
    assert before.with_changes(**changes) == dataclasses.replace(before, **changes) != before


def changed_somewhere(policy: Any) -> Any:
    """The same, but for one number, or else one truth."""
    name, hint = next(
        (each.name, each.hint)
        for of, each in sorted(POLICY_FIELDS, key=lambda item: item[1].hint is bool)
        if of is type(policy) and (each.hint is bool or bounds_of(each.hint))
    )
    bounds = bounds_of(hint)
    value = not getattr(policy, name) if bounds is None else bounds.high
    return dataclasses.replace(policy, **{name: value})


@pytest.mark.parametrize(
    ("shorthand", "part", "field", "value"),
    [
        ("attempt_timeout", "timeout", "attempt", 2.5),
        ("attempt_timeout", "timeout", "attempt", None),
        ("total_timeout", "timeout", "total", 9.5),
        ("attempts", "retry", "attempts", 11),
        ("idempotent", "retry", "idempotent", False),
        ("failure_rate", "breaker", "failure_rate", 0.125),
        ("consecutive_failures", "breaker", "consecutive_failures", 7),
        ("open_for", "breaker", "open_for", 7.5),
        ("rpm", "limit", "rpm", 120.0),
        ("max_concurrent", "concurrency", "max_concurrent", 8),
    ],
)
def test_a_shorthand_changes_one_field(shorthand: str, part: str, field: str, value: Any) -> None:
    before = Policy.rerank()
    changes: Any = {shorthand: value}
    changed = before.with_changes(**changes)
    expected: Any = {part: dataclasses.replace(getattr(before, part), **{field: value})}
    assert changed == dataclasses.replace(before, **expected)
    assert changed != before


def test_several_shorthands_of_one_part_all_count() -> None:
    changed = Policy().with_changes(attempt_timeout=1.0, total_timeout=2.0)
    assert changed.timeout == TimeoutPolicy(attempt=1.0, total=2.0)


def test_a_shorthand_after_a_part_changes_the_new_part() -> None:
    changed = Policy().with_changes(retry=RetryPolicy(max_backoff=1.0), attempts=6)
    assert changed.retry == RetryPolicy(max_backoff=1.0, attempts=6)


@pytest.mark.parametrize("family", FAMILIES)
def test_retries_of_ones_own_leave_it_to_the_preset_what_may_be_repeated(family: str) -> None:
    preset: Any = getattr(Policy, family)
    known = preset().retry.idempotent
    assert known is not None
    assert preset(retry=RetryPolicy(attempts=2)).retry == RetryPolicy(attempts=2, idempotent=known)
    said = RetryPolicy(attempts=2, idempotent=not known)
    assert preset(retry=said).retry == said
    assert Policy().with_changes(retry=RetryPolicy(attempts=2)).retry.idempotent is None


def test_no_change_is_the_same_policy() -> None:
    assert Policy.storage().with_changes() == Policy.storage()


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    changes: Any = {"atempts": 3}
    with pytest.raises(PolicyError) as caught:
        Policy().with_changes(**changes)
    message = "A policy has no 'atempts'; it has breaker, retry, limit, timeout, concurrency, "
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(
        ", attempt_timeout, total_timeout, attempts, idempotent, failure_rate, "
        "consecutive_failures, open_for, rpm, max_concurrent"
    )


def test_the_types_name_exactly_what_can_be_changed() -> None:
    assert set(Changes.__annotations__) == {*PARTS, *JUDGES, *_SHORTHANDS}
    assert [field.name for field in dataclasses.fields(Policy)] == [*PARTS, *JUDGES]


@pytest.mark.parametrize(("part", "name", "bounds"), NUMBERS)
@given(st.floats(allow_nan=True, allow_infinity=True) | st.integers() | st.floats(-1, 11))
def test_a_number_is_accepted_exactly_inside_its_bounds(
    part: type, name: str, bounds: Bounds, value: float
) -> None:
    fits = bounds.include(value) and (isinstance(value, int) or not bounds.is_whole)
    assert accepts(part, name, value) == fits


@pytest.mark.parametrize(("part", "name", "bounds"), NUMBERS)
@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, "5"])
def test_what_is_no_finite_number_is_refused(
    part: type, name: str, bounds: Bounds, value: object
) -> None:
    assert not accepts(part, name, value)


@pytest.mark.parametrize(("part", "name", "bounds"), NUMBERS)
def test_the_ends_of_the_bounds_are_accepted_where_they_belong(
    part: type, name: str, bounds: Bounds
) -> None:
    assert accepts(part, name, bounds.high)
    assert accepts(part, name, bounds.low) == bounds.is_closed


@pytest.mark.parametrize(("part", "setting"), FIELDS)
def test_a_refusal_names_class_field_value_and_what_is_allowed(part: Any, setting: Setting) -> None:
    nonsense: Any = object()
    with pytest.raises(PolicyError) as caught:
        part(**{setting.name: nonsense})
    assert str(caught.value) == (
        f"{part.__name__}.{setting.name} must be {setting.allowed}, not {nonsense!r}"
    )


def test_a_refusal_names_every_wrong_field() -> None:
    with pytest.raises(PolicyError) as caught:
        RetryPolicy(attempts=0, jitter="half", budget=-1)  # type: ignore[arg-type]
    assert [problem.split()[0] for problem in str(caught.value).split("; ")] == [
        "RetryPolicy.attempts",
        "RetryPolicy.jitter",
        "RetryPolicy.budget",
    ]


def test_a_refusal_reads_like_a_sentence() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.llm(failure_rate=1.5)
    assert str(caught.value) == (
        "BreakerPolicy.failure_rate must be a number above 0 and at most 1, or none, not 1.5"
    )


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (BreakerPolicy, "slow_call"),
        (BreakerPolicy, "consecutive_failures"),
        (LimitPolicy, "rpm"),
        (LimitPolicy, "burst"),
        (TimeoutPolicy, "attempt"),
        (TimeoutPolicy, "total"),
        (TimeoutPolicy, "first_item"),
        (TimeoutPolicy, "gap"),
        (TimeoutPolicy, "stream_total"),
        (ConcurrencyPolicy, "max_concurrent"),
        (RetryPolicy, "idempotent"),
    ],
)
def test_none_turns_off_what_can_be_turned_off(part: type, name: str) -> None:
    assert accepts(part, name, None)


def test_none_is_refused_where_there_is_nothing_to_turn_off() -> None:
    for part, setting in POLICY_FIELDS:
        assert accepts(part, setting.name, None) == setting.allowed.endswith(", or none")


@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        (BreakerPolicy, "mode", ["enforce", "metrics-only", "disabled", "forced-open"]),
        (BreakerPolicy, "window", ["count", "time"]),
        (RetryPolicy, "jitter", ["full", "decorrelated", "none"]),
    ],
)
def test_a_choice_takes_each_of_its_words(part: type, name: str, words: list[str]) -> None:
    assert [word for word in words if not accepts(part, name, word)] == []
    assert not accepts(part, name, words[0].upper())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"min_calls": 101},
            "BreakerPolicy.min_calls is 101, more than window_calls (100) can ever hold",
        ),
        (
            {"open_for": 5.5, "open_max": 5.25},
            "BreakerPolicy.open_max is 5.25 s, less than open_for (5.5 s)",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        BreakerPolicy(**fields)
    assert str(caught.value) == message


def test_fields_that_just_agree_are_accepted() -> None:
    assert BreakerPolicy(min_calls=100).min_calls == 100
    assert BreakerPolicy(open_for=30.0).breaks().longest == 60.0
    assert BreakerPolicy(open_for=30.0, open_max=30.0).breaks().longest == 30.0
    assert BreakerPolicy(min_calls=500, window="time").window_calls == 100


@pytest.mark.parametrize("part", [Policy, *POLICY_TYPES])
def test_a_policy_is_frozen_and_takes_no_other_names(part: Any) -> None:
    policy = part()
    name = dataclasses.fields(part)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(policy, name, getattr(policy, name))
    with pytest.raises(TypeError):
        part(nonsense=1)
    with pytest.raises(TypeError):
        part(getattr(policy, name))
    assert not hasattr(policy, "__dict__")


def test_policies_are_values() -> None:
    policy = Policy.llm(rpm=60.0)
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301 - made in the line itself
    assert copy.deepcopy(policy) == policy
    assert hash(policy) == hash(Policy.llm(rpm=60.0))
    assert policy != Policy.llm()


def test_a_part_must_be_of_its_kind() -> None:
    with pytest.raises(PolicyError, match=r"Policy\.timeout must be a TimeoutPolicy, not 5\.0"):
        Policy.llm(timeout=5.0)  # type: ignore[arg-type]


def test_single_fields_win_over_whole_parts_in_any_order() -> None:
    for policy in (
        Policy.llm(attempts=7, retry=RetryPolicy(budget=1)),
        Policy.llm(retry=RetryPolicy(budget=1), attempts=7),
    ):
        assert policy.retry == RetryPolicy(budget=1, attempts=7, idempotent=True)
