"""What each failure means, on exceptions that the real libraries raise."""

from __future__ import annotations

import asyncio
import enum
import gc
import http
import http.client
import json
import math
import pickle
import socket
import ssl
import urllib.error
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.errors import (
    AttemptTimeoutError,
    CircuitOpenError,
    DeadlineExceededError,
    PolicyError,
    TruncatedStreamError,
)
from lightrag_resilience.failures.classifier import (
    Failure,
    FailureKind,
    classify,
    is_recognized,
    root_cause,
)
from support.failures import (
    FATAL,
    LIBRARIES,
    LOCAL,
    STATUSES,
    THROTTLED,
    TRANSIENT,
    UNKNOWN,
    error_of,
    status_error,
)

# ---------------------------------------------------------------------- the verdict itself


def test_the_kinds_have_values_for_labels() -> None:
    assert [kind.value for kind in FailureKind] == ["transient", "throttled", "fatal", "unknown"]


@pytest.mark.parametrize(
    ("failure", "counts"),
    [(TRANSIENT, True), (UNKNOWN, True), (LOCAL, False), (THROTTLED, False), (FATAL, False)],
)
def test_only_failures_of_the_dependency_count(failure: Failure, counts: bool) -> None:  # noqa: FBT001
    assert failure.counts is counts


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(503),
        GeneratorExit(),
        BaseExceptionGroup("both", [asyncio.CancelledError(), ValueError()]),
    ],
)
def test_a_cancellation_or_an_exit_has_no_verdict(error: BaseException) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match="no failure of a dependency"):
            classify(error)


# ---------------------------------------------------------------------- builtins


def test_asyncios_type_error_for_a_lost_connection_is_no_bug_of_the_caller() -> None:
    """Python 3.12 raises a TypeError then, out of its own module."""

    def raised_in(module: str) -> Exception:
        namespace: dict[str, Any] = {"__name__": module}
        exec("def write(): return None()", namespace)  # noqa: S102 - a function of that module
        try:
            namespace["write"]()
        except TypeError as error:
            return error
        raise AssertionError

    assert classify(raised_in("asyncio.selector_events")).kind is FailureKind.UNKNOWN_OUTCOME
    assert classify(raised_in("my_app")).kind is FailureKind.FATAL


def test_builtin_errors_have_their_verdicts() -> None:
    fatal = [
        *(TypeError(), ValueError(), AttributeError(), KeyError(), IndexError(), NameError()),
        *(UnboundLocalError(), AssertionError(), NotImplementedError(), ZeroDivisionError()),
        *(OverflowError(), ModuleNotFoundError(), FileNotFoundError(), PermissionError()),
        *(IsADirectoryError(), MemoryError(), RecursionError(), json.JSONDecodeError("m", "d", 0)),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "m"),
    ]
    unknown = [
        *(ConnectionResetError(), BrokenPipeError(), ConnectionAbortedError(), ConnectionError()),
        *(TimeoutError(), OSError(110, "timed out"), OSError(), OSError("timed out"), EOFError()),
        *(
            ssl.SSLError(),
            ssl.SSLEOFError(),
            RuntimeError(),
            Exception(),
            http.client.BadStatusLine(""),
        ),
    ]
    transient = [
        *(ConnectionRefusedError(), socket.gaierror(-2, "m"), OSError(113, "no route")),
        *(ssl.SSLCertVerificationError(), OSError(101, "no network")),
        OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 99] No address"),
    ]
    assert {repr(error): classify(error) for error in fatal} == {repr(e): FATAL for e in fatal}
    assert [classify(error) for error in unknown] == [UNKNOWN] * len(unknown)
    assert [classify(error) for error in transient] == [TRANSIENT] * len(transient)


def test_a_subclass_has_the_verdict_of_its_nearest_known_base() -> None:
    class LostError(ConnectionResetError): ...

    class OddError(Exception): ...

    class OddValueError(OddError, ValueError): ...

    assert classify(LostError()) == UNKNOWN
    assert classify(OddError()) == UNKNOWN
    assert classify(OddValueError()) == FATAL


def test_a_class_of_the_same_name_in_another_package_is_unknown() -> None:
    stranger = type("TypeError", (Exception,), {"__module__": "elsewhere.errors"})
    nameless = type("ReadTimeout", (Exception,), {"__module__": None})
    assert classify(stranger()) == UNKNOWN
    assert classify(nameless()) == UNKNOWN


def test_the_cache_of_classes_is_bounded() -> None:
    first = type("PassingError", (ValueError,), {})
    assert classify(first()) == FATAL
    seen = weakref.ref(first)
    del first
    for number in range(600):
        classify(type(f"Error{number}", (ValueError,), {})())
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CircuitOpenError("llm", 5.0), FATAL),
        (AttemptTimeoutError("llm"), UNKNOWN),
        (DeadlineExceededError("llm"), UNKNOWN),
        (TruncatedStreamError("llm"), UNKNOWN),
        (PolicyError(), FATAL),
    ],
)
def test_errors_of_a_nested_guard_have_verdicts(error: Exception, expected: Failure) -> None:
    assert classify(error) == expected


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("status", "headers", "expected"), STATUSES)
def test_a_status_decides_unless_the_provider_says_whether_to_retry(
    library: str, status: int, headers: dict[str, str], expected: Failure
) -> None:
    assert classify(status_error(library, status, headers)) == expected


def test_a_status_of_the_standard_library_is_found() -> None:
    headers = Message()
    headers["Retry-After"] = "3"
    error = urllib.error.HTTPError("http://provider/", 503, "busy", headers, None)
    assert classify(error) == Failure(FailureKind.TRANSIENT, 3.0)


@pytest.mark.parametrize("name", ["status_code", "status", "http_status", "code"])
def test_a_status_is_read_under_each_of_its_names(name: str) -> None:
    error = ValueError("known as fatal, but its status knows better")
    setattr(error, name, http.HTTPStatus.SERVICE_UNAVAILABLE)
    assert classify(error) == TRANSIENT


@pytest.mark.parametrize("code", [0, 18, 200, 302, 1006, 11_000, -1, "503", None, 503.0, True])
def test_a_code_that_is_no_error_of_http_is_no_status(code: object) -> None:
    error = ValueError()
    error.code = code  # type: ignore[attr-defined]
    assert classify(error) == FATAL


# ---------------------------------------------------------------------- tenacity


def given_up(error: BaseException, *, times: int = 1) -> Exception:
    """What remains of an error after `times` decorators of tenacity, one around the other."""

    def fail() -> None:
        raise error

    call: Callable[[], None] = fail
    for _ in range(times):
        call = tenacity.retry(stop=tenacity.stop_after_attempt(2))(call)
    with pytest.raises(tenacity.RetryError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("times", [1, 3])
def test_a_retry_error_is_classified_by_its_last_attempt(times: int) -> None:
    error = FileNotFoundError()
    assert root_cause(given_up(error, times=times)) is error
    assert classify(given_up(error, times=times)) == FATAL
    assert classify(ExceptionGroup("m", [given_up(error, times=times)])) == FATAL


def test_an_error_is_recognized_if_it_or_its_cause_is_known() -> None:
    wrapped, judged, plain = RuntimeError("down"), RuntimeError("down"), RuntimeError("down")
    wrapped.__cause__ = ConnectionRefusedError()
    vars(judged)["__resilience_failure__"] = Failure(FailureKind.FATAL)
    assert [*map(is_recognized, (wrapped, judged, TimeoutError()))] == [True, True, True]
    assert not is_recognized(plain)


def test_root_cause_returns_other_errors_unchanged() -> None:
    error = RuntimeError()
    error.last_attempt = 5  # type: ignore[attr-defined]
    error.__cause__ = ValueError()
    cancelled = asyncio.CancelledError()
    assert root_cause(error) is error
    assert root_cause(cancelled) is cancelled


def test_root_cause_stops_at_an_attempt_without_an_error() -> None:
    @tenacity.retry(
        stop=tenacity.stop_after_attempt(1), retry=tenacity.retry_if_result(lambda _: True)
    )
    def never_good_enough() -> int:
        return 1

    with pytest.raises(tenacity.RetryError) as caught:
        never_good_enough()
    unfinished = tenacity.RetryError(tenacity.Future(1))
    endless = tenacity.RetryError(attempt := tenacity.Future(1))
    attempt.set_exception(endless)
    for error in (caught.value, unfinished, endless):
        assert root_cause(error) is error
        assert classify(error) == UNKNOWN


def test_root_cause_does_not_return_a_cancellation() -> None:
    @tenacity.retry(
        stop=tenacity.stop_after_attempt(1), retry=tenacity.retry_if_not_exception_type(KeyError)
    )
    async def cancelled() -> None:
        raise asyncio.CancelledError

    error = asyncio.run(error_of(cancelled()))
    assert isinstance(error, tenacity.RetryError)
    assert root_cause(error) is error
    assert classify(error) == UNKNOWN


# ---------------------------------------------------------------------- groups


def group(*errors: Exception) -> Exception:
    return ExceptionGroup("m", errors)


def test_a_group_has_the_verdict_of_its_worst_member() -> None:
    throttled = [status_error("httpx", 429, {"retry-after": text}) for text in ("9", "30", "2")]
    passing, lost, fault = ConnectionRefusedError(), TimeoutError(), ValueError()
    assert classify(group(passing, *throttled, lost, fault)) == FATAL
    assert classify(group(lost, passing, *throttled)) == UNKNOWN
    assert classify(group(passing, *throttled)) == Failure(FailureKind.THROTTLED, 30.0)
    assert classify(group(passing, status_error("httpx", 429))) == THROTTLED
    assert classify(group(passing, socket.gaierror())) == TRANSIENT
    assert classify(group(passing, group(passing, group(fault)))) == FATAL


# ---------------------------------------------------------------------- an error's own verdict


def test_an_error_may_carry_its_own_verdict_on_the_instance_or_the_class() -> None:
    class BusyError(ValueError):
        __resilience_failure__ = Failure(FailureKind.THROTTLED, 4.0)

    error = status_error("httpx", 400)
    error.__resilience_failure__ = UNKNOWN  # type: ignore[attr-defined]
    assert classify(BusyError()) == Failure(FailureKind.THROTTLED, 4.0)
    assert classify(error) == UNKNOWN


def test_a_verdict_given_to_a_class_after_its_first_error_counts_from_then_on() -> None:
    class LateError(Exception): ...

    assert classify(LateError()) == UNKNOWN
    LateError.__resilience_failure__ = FATAL  # type: ignore[attr-defined]
    assert classify(LateError()) == FATAL


def test_a_verdict_that_is_no_failure_is_ignored() -> None:
    error = ValueError()
    error.__resilience_failure__ = "transient"  # type: ignore[attr-defined]
    assert classify(error) == FATAL


# ---------------------------------------------------------------------- odd shapes


class TouchyError(ValueError):
    """Its attributes raise, as the `request` of httpx errors does."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_attributes_that_raise_do_not_hide_the_error() -> None:
    error = TouchyError()
    assert classify(error) == FATAL
    assert root_cause(error) is error


odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "type", "retry-after"]), inner)
    ),
    max_leaves=6,
)


class Shape(enum.Enum):
    RUNTIME = RuntimeError
    SDK = type("APIError", (Exception,), {"__module__": "openai"})
    VALUE = ValueError


@given(
    st.sampled_from(Shape),
    st.dictionaries(
        st.sampled_from(["status_code", "status", "code", "type", "body", "headers", "response"]),
        odd_values | st.sampled_from([400, 429, 503]),
    ),
)
def test_errors_of_any_shape_get_a_clean_verdict(shape: Shape, attributes: dict[str, Any]) -> None:
    error = shape.value("m")
    vars(error).update(attributes)
    wait = classify(error).retry_after
    assert wait is None or (math.isfinite(wait) and wait >= 0)


def test_verdicts_can_be_pickled_and_made_in_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(classify, [ConnectionResetError()] * 50))
    assert verdicts == [UNKNOWN] * 50
    assert pickle.loads(pickle.dumps(verdicts[0])) == UNKNOWN  # noqa: S301 - our own bytes


class SlottedStatusError(ValueError):
    __slots__ = ("status_code",)


class ComputedStatusError(ValueError):
    @property
    def status(self) -> int:
        return 503


class OfTheClassStatusError(ValueError):
    code = 503


class LookedUpStatusError(ValueError):
    def __getattr__(self, name: str) -> int:
        if name == "status_code":
            return 503
        raise AttributeError(name)


class InterceptedStatusError(ValueError):
    def __getattribute__(self, name: str) -> Any:
        return 503 if name == "status_code" else super().__getattribute__(name)


@pytest.mark.parametrize(
    "cls",
    [
        ValueError,
        SlottedStatusError,
        ComputedStatusError,
        OfTheClassStatusError,
        LookedUpStatusError,
        InterceptedStatusError,
    ],
)
def test_a_status_is_found_wherever_an_error_has_it(cls: type[Any]) -> None:
    error = cls()
    if cls in {ValueError, SlottedStatusError}:
        assert classify(error).kind is FailureKind.FATAL
        error.status_code = 503
    assert classify(error).kind is FailureKind.TRANSIENT
