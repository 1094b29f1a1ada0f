"""Guards by name: one for each name, made when it is first needed, whichever thread asks."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Mapping

import pytest

import lightrag_resilience
from lightrag_resilience import (
    Guard,
    Guards,
    Policy,
    PolicyError,
    SettingsError,
    State,
    guard,
    guards,
)
from lightrag_resilience.config import settings as settings_module
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.runtime.process_state import process

WAIT = 10.0  # seconds, a bound that is never reached
THREADS = 8


@pytest.fixture
def owner() -> Guards:
    return Guards(settings=load_settings({}))


class CountedLoading:
    """Loads settings, and counts how often."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.count = 0

    def __call__(self, environ: Mapping[str, str] | None = None) -> Settings:
        assert environ is None
        self.count += 1
        return load_settings(self.variables)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> CountedLoading:
    counted = CountedLoading({"RESILIENCE_LLM__RETRY__ATTEMPTS": "7"})
    monkeypatch.setattr(settings_module, "load_settings", counted)
    return counted


def test_the_same_name_is_the_same_guard(owner: Guards) -> None:
    assert owner.get("llm.openai") is owner.get("llm.openai")
    assert owner.get("llm.openai") is not owner.get("llm.azure")
    assert owner.get("llm.openai").name == "llm.openai"


def test_two_registries_have_guards_of_their_own(owner: Guards) -> None:
    other = Guards(settings=load_settings({}))
    assert owner.get("llm") is not other.get("llm")
    assert owner.events is not other.events


def test_a_guard_without_a_policy_gets_that_of_its_family(owner: Guards) -> None:
    assert owner.get("storage.orders").policy == Policy.storage()
    assert owner.get("orders").policy == Policy()


def test_a_policy_given_in_code_is_used(owner: Guards) -> None:
    policy = Policy.llm(attempts=2)
    assert owner.get("llm", policy).policy == policy


def test_variables_change_a_policy_given_in_code() -> None:
    owner = Guards(settings=load_settings({"RESILIENCE_LLM__RETRY__ATTEMPTS": "7"}))
    made = owner.get("llm.openai", Policy.llm(attempts=2, rpm=60.0))
    assert (made.policy.retry.attempts, made.policy.limit.rpm) == (7, 60.0)


def test_get_with_no_policy_or_an_equal_one_finds_the_guard(owner: Guards) -> None:
    made = owner.get("llm", Policy.llm(attempts=2))
    assert owner.get("llm") is made
    assert owner.get("llm", Policy.llm(attempts=2)) is made


def test_another_policy_for_a_name_is_refused(owner: Guards) -> None:
    made = owner.get("llm", Policy.llm(attempts=2))
    with pytest.raises(PolicyError) as caught:
        owner.get("llm", Policy.llm(attempts=3))
    assert str(caught.value) == (
        "The guard 'llm' exists with another policy; give the policy once, or always the same"
    )
    assert owner.get("llm") is made


def test_a_guard_that_was_used_without_a_policy_takes_one(owner: Guards) -> None:
    made = owner.get("llm")
    made.breaker.open()
    assert owner.get("llm", Policy.llm(attempts=3)) is made
    assert (made.policy.retry.attempts, made.breaker.state) == (3, State.OPEN)
    with pytest.raises(PolicyError):
        owner.get("llm", Policy.llm(attempts=2))


def test_a_policy_is_compared_as_given_in_code_without_variables() -> None:
    owner = Guards(settings=load_settings({"RESILIENCE_LLM__RETRY__ATTEMPTS": "7"}))
    made = owner.get("llm", Policy.llm(attempts=2))
    assert owner.get("llm", Policy.llm(attempts=2)) is made


def test_guards_are_listed_by_name(owner: Guards) -> None:
    made = {name: owner.get(name) for name in ("storage", "llm.b", "embedding", "llm.a")}
    assert list(owner) == [made[name] for name in sorted(made)]


def test_a_guard_may_be_made_while_the_guards_are_listed(owner: Guards) -> None:
    owner.get("a")
    owner.get("b")
    seen = []
    for one in owner:
        owner.get(f"{one.name}.more")
        seen.append(one.name)
    assert seen == ["a", "b"]


def test_a_guard_shares_the_registrys_events_clock_and_sleep() -> None:
    async def sleep(seconds: float) -> None:
        """Waits no time."""

    def clock() -> float:
        return 5.0

    owner = Guards(settings=load_settings({}), clock=clock, sleep=sleep)
    made = owner.get("llm")
    assert made.events is owner.events
    assert made.clock is clock
    assert made.sleep is sleep


def test_settings_are_read_once_and_not_before_they_are_needed(loading: CountedLoading) -> None:
    owner = Guards()
    assert list(owner) == []
    assert loading.count == 0
    assert owner.get("llm").policy.retry.attempts == 7
    assert owner.get("llm.other").policy.retry.attempts == 7
    assert owner.settings is owner.settings
    assert loading.count == 1


def test_settings_that_are_given_are_used(loading: CountedLoading) -> None:
    given = load_settings({"RESILIENCE_LLM__RETRY__ATTEMPTS": "2"})
    owner = Guards(settings=given)
    assert owner.settings is given
    assert owner.get("llm").policy.retry.attempts == 2
    assert loading.count == 0


def test_wrong_settings_make_no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENCE_LLM__RETRY__ATTEMPTS", "none")
    owner = Guards()
    for _ in range(2):
        with pytest.raises(SettingsError, match="RESILIENCE_LLM__RETRY__ATTEMPTS"):
            owner.get("llm")
    assert list(owner) == []


def test_many_threads_at_once_get_one_guard(loading: CountedLoading) -> None:
    owner = Guards()
    names = [f"llm.{number}" for number in range(50)]
    barrier = threading.Barrier(THREADS)

    def ask() -> list[Guard]:
        barrier.wait(WAIT)
        return [owner.get(name) for name in names]

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        outcomes = [pool.submit(ask) for _ in range(THREADS)]
        found = [outcome.result(WAIT) for outcome in outcomes]
    assert all(one == found[0] for one in found)
    assert len(list(owner)) == len(names)
    assert loading.count == 1


def test_the_guards_of_the_process_are_one_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Guards(settings=load_settings({}))
    monkeypatch.setitem(process, Guards, mine)
    assert guards() is mine
    policy = Policy.llm(attempts=2)
    assert guard("llm.openai", policy) is mine.get("llm.openai")
    assert mine.get("llm.openai").policy == policy
    assert lightrag_resilience.guard is guard
