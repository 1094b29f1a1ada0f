"""Errors: sentences for a person, data for a program, and no mistaken relatives."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pybreaker
import pytest

from lightrag_resilience import errors
from lightrag_resilience.errors import (
    AllFailedError,
    AttemptTimeoutError,
    BulkheadFullError,
    CallRejected,
    CallShedError,
    CircuitOpenError,
    DeadlineExceededError,
    DependencyError,
    InvalidResultError,
    PolicyError,
    RateLimitedError,
    ResilienceError,
    SettingsError,
    ShuttingDownError,
    TruncatedStreamError,
    UnsupportedCallError,
)

SENTENCES: list[tuple[ResilienceError, str]] = [
    (ResilienceError("All is lost"), "All is lost"),
    (PolicyError("Too large"), "Too large"),
    (UnsupportedCallError("f is a sync function"), "f is a sync function"),
    (SettingsError("A is 1"), "1 setting is wrong:\n  A is 1"),
    (SettingsError("A is 1", "B is 2"), "2 settings are wrong:\n  A is 1\n  B is 2"),
    (DependencyError("llm"), "'llm' failed"),
    (DependencyError("llm", 1.25, "for once"), "'llm' failed for once; try again in 1.2 s"),
    (CallRejected("llm", 3), "A call of 'llm' was rejected; try again in 3.0 s"),
    (
        CircuitOpenError("llm.openai", 4.2, "after 5 failures in a row"),
        "Circuit 'llm.openai' is open after 5 failures in a row; next probe in 4.2 s",
    ),
    (CircuitOpenError("llm", None, "by hand"), "Circuit 'llm' is open by hand"),
    (
        CircuitOpenError("llm", 0.5, "with its probe taken", "half-open"),
        "Circuit 'llm' is half-open with its probe taken; try again in 0.5 s",
    ),
    (CircuitOpenError("llm", None, "", "half-open"), "Circuit 'llm' is half-open"),
    (
        CallShedError("llm", 1.0, "as 80 of 100 calls failed"),
        "A background call of 'llm' was shed as 80 of 100 calls failed; try again in 1.0 s",
    ),
    (
        RateLimitedError("llm", 2.0, "for the next 2 s"),
        "Rate limit of 'llm' is used up for the next 2 s; try again in 2.0 s",
    ),
    (
        BulkheadFullError("llm", None, "with 9 waiting"),
        "Too many calls of 'llm' at once with 9 waiting",
    ),
    (AttemptTimeoutError("llm", None, "after 30 s"), "An attempt of 'llm' timed out after 30 s"),
    (
        TruncatedStreamError("llm", None, "before its finish marker"),
        "A stream of 'llm' was cut off before its finish marker",
    ),
    (InvalidResultError("llm", None, "with no text"), "'llm' answered with no text"),
    (
        ShuttingDownError("llm", 2.0),
        "'llm' is not called any more: this process shuts down; try again in 2.0 s",
    ),
    (
        DeadlineExceededError("llm", None, "after 60 s"),
        "The deadline of 'llm' has passed after 60 s",
    ),
    (
        AllFailedError("llm.a", None, "(llm.a: CircuitOpenError; llm.b: IOError)", ()),
        "'llm.a' and its fallbacks failed (llm.a: CircuitOpenError; llm.b: IOError)",
    ),
]
PUBLIC: list[type[ResilienceError]] = [getattr(errors, name) for name in errors.__all__]
COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 - made in the line itself
]


def state_of(error: ResilienceError) -> tuple[Any, ...]:
    notes = getattr(error, "__notes__", None)
    return type(error), error.args, str(error), notes


def is_of_pybreaker(error: type) -> bool:
    return issubclass(error, pybreaker.CircuitBreakerError)


def test_every_public_error_has_a_sentence_here() -> None:
    assert {type(error) for error, _ in SENTENCES} == set(PUBLIC)


@pytest.mark.parametrize(("error", "sentence"), SENTENCES, ids=lambda value: type(value).__name__)
def test_an_error_is_a_sentence_for_a_person(error: ResilienceError, sentence: str) -> None:
    assert str(error) == sentence


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("error", [error for error, _ in SENTENCES], ids=repr)
def test_an_error_can_be_copied_and_pickled(
    error: ResilienceError, duplicate: Callable[[Any], Any]
) -> None:
    error = type(error)(*error.args)
    error.add_note("seen by a test")
    assert duplicate(error) is not error
    assert state_of(duplicate(error)) == state_of(error)


@pytest.mark.parametrize("error", PUBLIC)
def test_no_error_is_one_that_callers_retry(error: type[ResilienceError]) -> None:
    assert issubclass(error, ResilienceError)
    assert not issubclass(error, OSError)
    assert not issubclass(error, (TimeoutError, ConnectionError))


def test_an_open_circuit_is_an_error_of_pybreaker_too() -> None:
    relatives = [name for name in errors.__all__ if is_of_pybreaker(getattr(errors, name))]
    assert relatives == ["CircuitOpenError"]


def test_only_errors_of_calls_never_sent_are_rejections() -> None:
    refusals = {error for error in PUBLIC if issubclass(error, CallRejected)}
    limits = {RateLimitedError, BulkheadFullError, CallShedError}
    assert refusals == {CallRejected, CircuitOpenError, ShuttingDownError, *limits}


def test_errors_about_a_dependency_are_dependency_errors() -> None:
    others = {error for error in PUBLIC if not issubclass(error, DependencyError)}
    assert others == {ResilienceError, PolicyError, SettingsError, UnsupportedCallError}


def test_programming_mistakes_are_value_or_type_errors() -> None:
    assert issubclass(PolicyError, ValueError)
    assert issubclass(SettingsError, ValueError)
    assert issubclass(UnsupportedCallError, TypeError)
    assert not issubclass(DependencyError, (ValueError, TypeError))


def test_the_data_of_an_error_is_in_its_args() -> None:
    error = CircuitOpenError("llm.openai", 4, "after 5 failures", "half-open")
    assert error.args == ("llm.openai", 4, "after 5 failures", "half-open")
    assert (error.dependency, error.retry_after) == ("llm.openai", 4.0)
    assert isinstance(error.retry_after, float)
    assert (error.reason, error.state) == ("after 5 failures", "half-open")


def test_missing_data_of_an_error_has_defaults() -> None:
    error = CircuitOpenError("llm")
    assert (error.dependency, error.retry_after, error.reason) == ("llm", None, "")
    assert error.state == "open"


def test_zero_seconds_are_not_unknown_seconds() -> None:
    error = RateLimitedError("llm", 0)
    assert error.retry_after == 0.0
    assert str(error).endswith("; try again in 0.0 s")


def test_making_an_error_runs_no_python_code() -> None:
    for error in PUBLIC:
        assert not inspect.isfunction(error.__init__)
        assert not inspect.isfunction(error.__new__)


def test_a_settings_error_lists_all_problems() -> None:
    error = SettingsError("RESILIENCE_A is 1", "RESILIENCE_B is 2", "RESILIENCE_C is 3")
    assert error.problems == ("RESILIENCE_A is 1", "RESILIENCE_B is 2", "RESILIENCE_C is 3")
    assert [line.strip() for line in str(error).splitlines()[1:]] == list(error.problems)


def test_the_public_names_are_the_errors_of_the_module() -> None:
    defined = [
        name
        for name, member in vars(errors).items()
        if inspect.isclass(member) and member.__module__ == errors.__name__
    ]
    assert errors.__all__ == sorted(defined)


def test_lightrags_prefix_is_not_part_of_the_dependency() -> None:
    error = CircuitOpenError("llm.openai", 3.0, "after 5 failures")
    prefixed = CircuitOpenError(f"C[1/3]: chunk-1: {error.args[0]}", *error.args[1:])
    assert prefixed.dependency == "llm.openai"
    assert str(prefixed) == f"C[1/3]: chunk-1: {error}"


def test_an_isolation_ends_and_names_no_probe() -> None:
    reason = "by Ada on host (isolated): they migrate"
    assert str(CircuitOpenError("llm", 599.0, reason)) == (
        f"Circuit 'llm' is open {reason}; ends in 599.0 s"
    )
    assert "next probe in 4.0 s" in str(CircuitOpenError("llm", 4.0, "by Ada on host"))
