"""Verdicts that `classify_as` registers for a user's own exceptions."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from lightrag_resilience import Failure, FailureKind, classify_as
from lightrag_resilience.failures.classifier import _Rules, classify, root_cause
from lightrag_resilience.runtime.process_state import process
from support.verdicts import FATAL, THROTTLED, TRANSIENT, UNKNOWN

Register = Callable[..., Callable[[], None]]


class BusyError(Exception):
    wait: Any = 4.0


class VeryBusyError(BusyError): ...


@pytest.fixture
def register() -> Iterator[Register]:
    """`classify_as`, taken back at the end of the test."""
    undo: list[Callable[[], None]] = []

    def registered(cls: Any, verdict: Any) -> Callable[[], None]:
        undo.append(classify_as(cls, verdict))
        return undo[-1]

    yield registered
    for take_back in undo:
        take_back()
    assert classify(BusyError()) == UNKNOWN


def test_a_class_is_given_a_kind_or_a_failure(register: Register) -> None:
    register(BusyError, FailureKind.FATAL)
    assert classify(BusyError()) == FATAL
    register(BusyError, Failure(FailureKind.THROTTLED, 2.0))
    assert classify(BusyError()) == Failure(FailureKind.THROTTLED, 2.0)


def test_a_registered_verdict_holds_for_subclasses_seen_before(register: Register) -> None:
    assert classify(VeryBusyError()) == UNKNOWN
    register(BusyError, FailureKind.TRANSIENT)
    assert classify(VeryBusyError()) == TRANSIENT
    register(VeryBusyError, FailureKind.FATAL)
    assert classify(VeryBusyError()) == FATAL
    assert classify(BusyError()) == TRANSIENT


def test_a_registered_function_reads_the_exception(register: Register) -> None:
    def read(error: BusyError) -> Failure | FailureKind | None:
        if error.wait is None:
            return FailureKind.FATAL
        return Failure(FailureKind.THROTTLED, error.wait) if error.wait else None

    register(BusyError, read)
    error = BusyError()
    assert classify(error) == Failure(FailureKind.THROTTLED, 4.0)
    error.wait = None
    assert classify(error) == FATAL
    error.wait = 0
    assert classify(error) == UNKNOWN


def test_a_registered_verdict_overrides_tables_and_status(register: Register) -> None:
    class ModelError(ValueError): ...

    class GatewayError(httpx.HTTPStatusError):
        def __init__(self, status: int) -> None:
            request = httpx.Request("GET", "http://p/")
            super().__init__("m", request=request, response=httpx.Response(status))

    assert classify(ModelError()) == FATAL
    assert classify(GatewayError(400)) == FATAL
    register(ModelError, FailureKind.TRANSIENT)
    register(GatewayError, lambda error: FailureKind.TRANSIENT if "m" in str(error) else None)
    assert classify(ModelError()) == TRANSIENT
    assert classify(GatewayError(400)) == TRANSIENT
    register(GatewayError, lambda _: None)
    assert classify(GatewayError(400)) == FATAL


def test_an_errors_own_verdict_overrides_a_registered_one(register: Register) -> None:
    register(BusyError, FailureKind.FATAL)
    error = BusyError()
    error.__resilience_failure__ = THROTTLED  # type: ignore[attr-defined]
    assert classify(error) == THROTTLED


def test_a_registered_verdict_holds_in_a_group(register: Register) -> None:
    register(BusyError, FailureKind.FATAL)
    assert classify(ExceptionGroup("m", [OSError(), BusyError()])) == FATAL


def test_the_later_registration_holds_until_it_is_removed(register: Register) -> None:
    first = register(BusyError, FailureKind.FATAL)
    second = register(BusyError, FailureKind.THROTTLED)
    assert classify(BusyError()) == THROTTLED
    second()
    second()
    assert classify(BusyError()) == FATAL
    first()
    assert classify(BusyError()) == UNKNOWN


def test_a_verdict_registered_twice_is_removed_twice(register: Register) -> None:
    first, second = register(BusyError, FailureKind.FATAL), register(BusyError, FailureKind.FATAL)
    first()
    assert classify(BusyError()) == FATAL
    second()
    assert classify(BusyError()) == UNKNOWN


def test_a_function_that_fails_is_reported_and_the_tables_decide(
    register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    class OddError(ValueError): ...

    def read(error: OddError) -> FailureKind:
        raise KeyError(str(error))

    register(OddError, read)
    with caplog.at_level(logging.ERROR, "lightrag_resilience"):
        assert classify(OddError("a secret prompt")) == FATAL
    (record,) = caplog.records
    assert record.getMessage() == (
        "The function given to classify_as for OddError gave no verdict but KeyError"
    )
    assert "secret" not in caplog.text


@pytest.mark.parametrize("verdict", ["transient", True, 5.0, FailureKind])
def test_a_function_that_returns_no_verdict_is_reported_and_the_tables_decide(
    register: Register, caplog: pytest.LogCaptureFixture, verdict: object
) -> None:
    register(BusyError, lambda _: verdict)
    with caplog.at_level(logging.ERROR, "lightrag_resilience"):
        assert classify(BusyError()) == UNKNOWN
    (record,) = caplog.records
    assert record.getMessage().startswith("The function given to classify_as for BusyError gave no")


@pytest.mark.parametrize(
    "cls",
    [Exception, BaseException, KeyboardInterrupt, int, BusyError(), "BusyError", None, list[int]],
)
def test_registering_what_is_no_exception_class_is_refused(cls: Any) -> None:
    with pytest.raises(TypeError, match=r"classify_as needs a subclass of Exception, not "):
        classify_as(cls, FailureKind.FATAL)


@pytest.mark.parametrize("verdict", [None, "fatal", 503, FailureKind, Failure, ValueError])
def test_registering_what_is_no_verdict_is_refused(verdict: Any) -> None:
    message = "classify_as needs a FailureKind, a Failure or a function for BusyError, not "
    with pytest.raises(TypeError, match=message):
        classify_as(BusyError, verdict)


def test_threads_never_see_a_stale_verdict() -> None:
    kinds = (FailureKind.FATAL, FailureKind.THROTTLED, FailureKind.TRANSIENT)
    started = threading.Barrier(4)

    def register_and_classify(number: int) -> bool:
        own = type(f"Own{number}Error", (BusyError,), {})
        started.wait()
        right = []
        for turn in range(200):
            kind = kinds[turn % 3]
            take_back = classify_as(own, kind)
            right.append(classify(own()).kind is kind)
            take_back()
            right.append(classify(own()) == UNKNOWN)
        return all(right)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(register_and_classify, range(4)))


class Comparing(type):  # noqa: PLW1641 - it is about just that
    """Classes that compare by something else, and so have no hash."""

    def __eq__(cls, other: object) -> bool:
        return NotImplemented


class OddError(Exception, metaclass=Comparing):
    pass


@dataclasses.dataclass
class WithFieldsError(Exception):
    """Such an instance has no hash either."""

    number: int


@pytest.mark.parametrize("error", [OddError(), WithFieldsError(1)])
def test_an_unhashable_error_is_classified(register: Register, error: Exception) -> None:
    group = ExceptionGroup("both", [error, ValueError()])
    assert classify(error) == UNKNOWN
    assert classify(group).kind is FailureKind.FATAL
    assert root_cause(error) is error
    register(type(error), FailureKind.FATAL)
    assert classify(error).kind is FailureKind.FATAL


def test_classes_made_at_run_time_do_not_fill_the_cache() -> None:
    for number in range(1_100):
        made = type(f"Made{number}", (ConnectionRefusedError,), {})
        assert classify(made()) == Failure(FailureKind.TRANSIENT)
        assert len(process[_Rules].known) <= 512
