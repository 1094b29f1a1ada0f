"""Policies that change while a process runs."""

from __future__ import annotations

import asyncio

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    BreakerPolicy,
    CircuitOpenError,
    ConcurrencyPolicy,
    DeadlineExceededError,
    Guard,
    Guards,
    LimitPolicy,
    Policy,
    SettingsError,
    State,
    TimeoutPolicy,
)
from lightrag_resilience.breakers import Breaker
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.retry import RetryBudget
from lightrag_resilience.shared_state.messages import Override
from support.guards import Scripted, down, guard_on_loop, now, outcomes, patient

pytestmark = pytest.mark.anyio

RPM = "RESILIENCE_LLM__LIMIT__RPM"


async def test_new_calls_use_the_new_policy_and_calls_in_flight_the_old() -> None:
    guard = guard_on_loop(timeout=TimeoutPolicy(attempt=10.0, total=None))
    old = asyncio.create_task(guard.call(Scripted(5.0)))
    await asyncio.sleep(1.0)
    guard.update_policy(patient(timeout=TimeoutPolicy(attempt=1.0, total=None)))
    (error,) = await outcomes([guard.call(Scripted(5.0))])
    assert "after 1 s" in str(error)
    assert now() == pytest.approx(2.0)
    await old
    assert now() == pytest.approx(5.0)


async def test_permits_of_calls_in_flight_return_to_the_old_bulkhead() -> None:
    guard = guard_on_loop(concurrency=ConcurrencyPolicy(max_concurrent=2))
    old = [asyncio.create_task(guard.call(Scripted(5.0))) for _ in range(2)]
    await asyncio.sleep(1.0)
    guard.update_policy(patient(concurrency=ConcurrencyPolicy(max_concurrent=1)))
    function = Scripted(1.0)
    await outcomes(guard.call(function) for _ in range(3))
    assert function.gaps() == pytest.approx([1.0, 1.0])
    await asyncio.gather(*old)


async def test_the_bulkhead_stays_if_its_policy_does() -> None:
    guard = guard_on_loop(concurrency=ConcurrencyPolicy(max_concurrent=2))
    function = Scripted(10.0)
    calls = [asyncio.create_task(guard.call(function)) for _ in range(4)]
    await asyncio.sleep(1.0)
    guard.update_policy(guard.policy.with_changes(rpm=6000.0))
    calls += [asyncio.create_task(guard.call(function)) for _ in range(2)]
    await asyncio.gather(*calls)
    assert function.at == pytest.approx([0.0, 0.0, 10.0, 10.0, 20.0, 20.0])


async def test_turns_are_the_same_where_the_policy_gives_as_many() -> None:
    guard = guard_on_loop(limit=LimitPolicy(rpm=60.0, burst=2))
    function = Scripted("answer")
    await outcomes(guard.call(function) for _ in range(2))
    guard.update_policy(guard.policy.with_changes(attempt_timeout=9.0))
    await outcomes(guard.call(function) for _ in range(2))
    assert function.at == pytest.approx([0.0, 0.0, 1.0, 2.0])


TIMES = [
    (TimeoutPolicy(attempt=10.0, total=None), TimeoutPolicy(attempt=None, total=None)),
    (TimeoutPolicy(attempt=None, total=10.0), TimeoutPolicy(attempt=None, total=100.0)),
    (TimeoutPolicy(attempt=None, total=10.0), TimeoutPolicy(attempt=None, total=None)),
]


@pytest.mark.parametrize(("before", "after"), TIMES)
async def test_a_call_keeps_the_timeouts_it_began_with(
    before: TimeoutPolicy, after: TimeoutPolicy
) -> None:
    guard = guard_on_loop(timeout=before, concurrency=ConcurrencyPolicy(max_concurrent=1))
    call = asyncio.create_task(guard.call(Scripted(60.0)))
    await asyncio.sleep(1.0)
    occupancy = guard._loop_states
    guard.update_policy(patient(timeout=after))
    expected = AttemptTimeoutError if before.total is None else DeadlineExceededError
    with pytest.raises(expected, match="after 10 s"):
        await call
    assert (now(), occupancy.occupancy.in_use) == (10.0, 0)


async def test_a_change_amid_a_call_is_not_lost() -> None:
    class Changing(Breaker):
        __slots__ = ()

        def begin(self) -> None:
            guard.update_policy(patient(timeout=TimeoutPolicy(attempt=1.0, total=None)))

    loop = asyncio.get_running_loop()
    policy = patient(timeout=TimeoutPolicy(attempt=50.0, total=None))
    guard = Guard("llm", policy, breaker=Changing("llm", policy.effective_breaker), clock=loop.time)
    assert await guard.call(Scripted(5.0)) == 5.0
    with pytest.raises(AttemptTimeoutError, match="after 1 s"):
        await guard.call(Scripted(5.0))


async def test_a_limit_can_be_set_and_lifted() -> None:
    guard = guard_on_loop()
    await guard.call(Scripted("fine"))
    guard.update_policy(patient(limit=LimitPolicy(rpm=60.0, burst=1)))
    function = Scripted("fine")
    await outcomes(guard.call(function) for _ in range(3))
    assert function.gaps() == pytest.approx([1.0, 1.0], abs=0.01)
    guard.update_policy(patient())
    at = now()
    await outcomes(guard.call(function) for _ in range(3))
    assert now() == at


async def test_the_breaker_keeps_its_state_and_uses_the_new_thresholds() -> None:
    guard = guard_on_loop(consecutive_failures=3)
    await outcomes(guard.call(Scripted(down())) for _ in range(2))
    guard.update_policy(patient(consecutive_failures=5, open_for=20.0))
    await outcomes(guard.call(Scripted(down())) for _ in range(2))
    assert guard.breaker.snapshot().state is State.CLOSED
    await outcomes(guard.call(Scripted(down())) for _ in range(3))
    assert guard.breaker.snapshot().state is State.OPEN
    guard.update_policy(patient(consecutive_failures=1))
    with pytest.raises(CircuitOpenError):
        await guard.call(Scripted("fine"))


async def test_fewer_probes_than_have_succeeded_close_a_half_open_circuit() -> None:
    guard = guard_on_loop(breaker=BreakerPolicy(probes=3, open_for=5.0))
    guard.breaker.half_open()
    await guard.call(Scripted("answer"))
    assert guard.breaker.snapshot().state is State.HALF_OPEN
    guard.update_policy(guard.policy.with_changes(breaker=BreakerPolicy(probes=1, open_for=5.0)))
    assert guard.breaker.snapshot().state is State.CLOSED


async def test_a_policy_with_the_same_thresholds_forgets_nothing() -> None:
    guard = guard_on_loop()
    await outcomes(guard.call(Scripted(down())) for _ in range(3))
    guard.update_policy(guard.policy.with_changes(rpm=6000.0))
    assert guard.breaker.snapshot().failed == 3


async def test_another_mode_takes_effect_at_once() -> None:
    guard = guard_on_loop()
    guard.update_policy(patient(breaker=BreakerPolicy(mode="forced-open")), "by Ada")
    with pytest.raises(CircuitOpenError, match="by Ada"):
        await guard.call(Scripted("fine"))
    guard.update_policy(patient())
    await guard.call(Scripted("fine"))


def test_what_was_spent_of_a_budget_stays_spent() -> None:
    budget = RetryBudget(100)
    budget.spend(30)
    budget.resize(50)
    assert (budget.capacity, budget.tokens) == (50, 20)
    budget.resize(10)
    assert (budget.capacity, budget.tokens) == (10, 0)


# ---------------------------------------------------------------------- by variables


def test_overrides_reach_guards_that_are_there_and_guards_to_come() -> None:
    registry = Guards(settings=load_settings({"RESILIENCE_LLM__RETRY__ATTEMPTS": "7"}))
    openai = registry.get("llm.openai", Policy.llm(open_for=7.0))
    other = registry.get("storage")
    before = other.policy
    registry.override({RPM: "60"})
    late = registry.get("llm.late")
    for guard in (openai, late):
        assert guard.policy.limit.rpm == 60.0
        assert guard.policy.retry.attempts == 7
    assert openai.policy.breaker.open_for == 7.0
    assert other.policy is before
    registry.override({})
    assert openai.policy.limit.rpm is None
    assert late.policy.limit.rpm is None


def test_an_override_replaces_its_variable_and_no_other() -> None:
    environ = {RPM: "10", "RESILIENCE_LLM__LIMIT__BURST": "3"}
    settings = load_settings(environ).with_overrides({RPM.lower(): "20"})
    limit = settings.policy_for("llm").limit
    assert (limit.rpm, limit.burst) == (20.0, 3)
    assert load_settings(environ).policy_for("llm").limit.rpm == 10.0


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({RPM: "many"}, "must be"),
        ({"RESILIENCE_INGEST_PATIENCE": "5"}, "read at the start only"),
        ({"RESILIENCE_LLM__LIMIT__RPN": "5"}, "did you mean"),
        ({"OTHER": "5"}, "OTHER is not known"),
        ({"RESILIENCE_LLM__BREAKER__MIN_CALLS": "9000"}, "window_calls"),
    ],
)
def test_wrong_overrides_change_nothing(variables: dict[str, str], problem: str) -> None:
    registry = Guards(settings=load_settings({}))
    guard = registry.get("llm")
    before = guard.policy
    with pytest.raises(SettingsError, match=problem):
        registry.override(variables)
    assert guard.policy is before


# ---------------------------------------------------------------------- by others, in Redis


def stored(values: dict[str, str]) -> dict[str, Override]:
    return {name: Override(value, "by Ada") for name, value in values.items()}


@pytest.mark.parametrize(
    "odd",
    [
        {"RESILIENCE_LLM__LIMIT__TPM": "many"},
        {"RESILIENCE_LLM__LIMIT__TPM": "9" * 5000},
        {"RESILIENCE_INGEST_PATIENCE": "5"},
        {"RESILIENCE_LLM__LIMIT__RPN": "5"},
        {"RESILIENCE_REDIS_SERVICE_HOST": "10.0.0.7"},
        {"FOO__LIMIT__RPM": "5"},
        {"RESILIENCE_LLM__BREA\u212aER__MIN_CALLS": "x"},
    ],
)
def test_what_makes_no_sense_among_overrides_in_redis_hides_no_other(
    odd: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    registry = Guards(settings=load_settings({}))
    guard = registry.get("llm")
    registry._override(stored({RPM: "60", **odd}))
    assert guard.policy.limit.rpm == 60.0
    (complaint,) = (line for line in caplog.messages if "are ignored" in line)
    assert next(iter(odd)) in complaint
    assert len(complaint) < 500
    registry._override({})
    assert guard.policy.limit.rpm is None


def test_overrides_that_contradict_each_other_are_all_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = Guards(settings=load_settings({}))
    guard = registry.get("llm")
    registry._override(stored({RPM: "60", "RESILIENCE_LLM__BREAKER__MIN_CALLS": "9000"}))
    assert guard.policy.limit.rpm is None
    assert "window_calls" in caplog.text
    both = {"MIN_CALLS": "9000", "WINDOW_CALLS": "9000"}
    registry._override(
        stored({f"RESILIENCE_LLM__BREAKER__{name}": value for name, value in both.items()})
    )
    assert guard.policy.breaker.min_calls == 9000


def test_overrides_that_contradict_what_code_says_change_no_such_guard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = Guards(settings=load_settings({}))
    code = Policy.llm(breaker=BreakerPolicy(window_calls=50))
    strict, other = registry.get("llm.strict", code), registry.get("storage")
    registry._override(stored({"RESILIENCE_DEFAULT__BREAKER__MIN_CALLS": "80"}))
    assert strict.policy == code
    assert other.policy.breaker.min_calls == 80
    assert registry.get("llm.late", code).policy == code
    assert "Overrides of 'llm.late' are ignored" in caplog.text
    assert registry.get("llm").policy.breaker.min_calls == 80


def test_a_thousand_invalid_overrides_are_logged_in_one_short_message(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightrag_resilience.config.env_parsing.nearest", pytest.fail)
    registry = Guards(settings=load_settings({}))
    registry._override(
        stored({f"RESILIENCE_LLM__{'X' * 170}__{number}": "1" for number in range(1000)})
    )
    (complaint,) = caplog.messages
    assert complaint.endswith("and 995 more")
    assert len(complaint) < 2000
