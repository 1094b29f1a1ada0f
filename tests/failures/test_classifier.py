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
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from email.message import Message
from typing import Any

import httpx
import pytest
import redis.asyncio
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from redis.retry import Retry

from lightrag_resilience.errors import (
    AttemptTimeoutError,
    CircuitOpenError,
    DeadlineExceededError,
    PolicyError,
    TruncatedStreamError,
)
from lightrag_resilience.failures.classifier import Failure, FailureKind, classify, root_cause

TRANSIENT = Failure(FailureKind.TRANSIENT)
THROTTLED = Failure(FailureKind.THROTTLED)
LOCAL = Failure(FailureKind.TRANSIENT, is_local=True)
FATAL = Failure(FailureKind.FATAL)
UNKNOWN = Failure(FailureKind.UNKNOWN_OUTCOME)

Respond = Callable[[Any], Any]
LIBRARIES = ["httpx", "httpx2"]


async def error_of(call: Awaitable[object]) -> Exception:
    try:
        await call
    except Exception as error:  # noqa: BLE001 - whichever it is, the test looks at it
        return error
    raise AssertionError("it did not fail")


# ---------------------------------------------------------------------- the verdict itself


def test_the_kinds_have_words_for_labels() -> None:
    assert [kind.value for kind in FailureKind] == ["transient", "throttled", "fatal", "unknown"]


@pytest.mark.parametrize(
    ("failure", "counts"),
    [(TRANSIENT, True), (UNKNOWN, True), (LOCAL, False), (THROTTLED, False), (FATAL, False)],
)
def test_only_what_the_dependency_is_to_blame_for_counts(failure: Failure, counts: bool) -> None:  # noqa: FBT001
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


def test_what_asyncio_makes_of_writing_to_a_lost_connection_is_no_bug_of_the_caller() -> None:
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


def test_a_class_of_the_same_name_elsewhere_is_not_mistaken_for_a_known_one() -> None:
    stranger = type("TypeError", (Exception,), {"__module__": "elsewhere.errors"})
    nameless = type("ReadTimeout", (Exception,), {"__module__": None})
    assert classify(stranger()) == UNKNOWN
    assert classify(nameless()) == UNKNOWN


def test_types_that_were_seen_once_are_forgotten_in_the_end() -> None:
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
def test_what_an_inner_guard_raises_has_a_verdict(error: Exception, expected: Failure) -> None:
    assert classify(error) == expected


# ---------------------------------------------------------------------- statuses


def status_error(library: str, status: int, headers: Any = None) -> Exception:
    module = pytest.importorskip(library)
    transport = module.MockTransport(lambda _: module.Response(status, headers=headers))
    with module.Client(transport=transport) as client, pytest.raises(Exception) as caught:  # noqa: PT011
        client.get("http://provider/").raise_for_status()
    return caught.value


STATUSES = [
    *((status, {}, TRANSIENT) for status in (408, 409, 424, 425, 444, 449, 460, 498, 499)),
    *(
        (status, {}, TRANSIENT)
        for status in (500, 502, 503, 504, 509, 520, 524, 529, 530, 598, 599)
    ),
    *((status, {}, FATAL) for status in (400, 401, 402, 403, 404, 405, 413, 422)),
    *((status, {}, FATAL) for status in (440, 463, 464, 494, 495, 496, 497, 561)),
    (420, {}, THROTTLED),
    (429, {}, THROTTLED),
    (429, {"retry-after": "20"}, Failure(FailureKind.THROTTLED, 20.0)),
    (429, {"x-ratelimit-reset-tokens": "6m0s"}, Failure(FailureKind.THROTTLED, 30.0)),
    (503, {"retry-after": "7"}, Failure(FailureKind.TRANSIENT, 7.0)),
    (503, {"x-ratelimit-reset-tokens": "6m0s"}, TRANSIENT),
    (404, {"retry-after": "7"}, FATAL),
    (400, {"x-should-retry": "true"}, TRANSIENT),
    (400, {"x-should-retry": "true", "retry-after": "1"}, Failure(FailureKind.TRANSIENT, 1.0)),
    (429, {"x-should-retry": "true"}, THROTTLED),
    (429, {"x-should-retry": "false", "retry-after": "1"}, FATAL),
    (500, {"x-should-retry": "false"}, FATAL),
    (500, {"x-should-retry": "perhaps"}, TRANSIENT),
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("status", "headers", "expected"), STATUSES)
def test_a_status_decides_unless_the_provider_says_whether_to_retry(
    library: str, status: int, headers: dict[str, str], expected: Failure
) -> None:
    assert classify(status_error(library, status, headers)) == expected


def test_a_status_is_found_where_the_standard_library_puts_it() -> None:
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


# ---------------------------------------------------------------------- httpx, httpx2


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, TRANSIENT) for name in ("ConnectTimeout", "ConnectError", "ProxyError")),
        ("PoolTimeout", LOCAL),
        *((name, UNKNOWN) for name in ("ReadTimeout", "WriteTimeout", "ReadError", "WriteError")),
        *((name, UNKNOWN) for name in ("CloseError", "RemoteProtocolError", "DecodingError")),
        *((name, FATAL) for name in ("UnsupportedProtocol", "LocalProtocolError", "InvalidURL")),
        ("TooManyRedirects", FATAL),
    ],
)
def test_httpx_errors_tell_whether_anything_was_sent(
    library: str, name: str, expected: Failure
) -> None:
    error = getattr(pytest.importorskip(library), name)("m")
    assert classify(error) == expected


@asynccontextmanager
async def server(answer: bytes | None) -> Any:
    """A port that answers each request with `answer`, hangs up on b"", or is silent on None."""
    quiet = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while packet := await reader.read(4096):
            if answer is None:
                await quiet.wait()
            if not answer:
                break
            # Redis clients may send several commands in one packet; each begins with a star.
            writer.write(answer * max((b"\n" + packet).count(b"\n*"), 1))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        quiet.set()
        listening.close()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def httpx_get(library: str, port: int) -> Exception:
    module = pytest.importorskip(library)
    async with module.AsyncClient(timeout=0.2, trust_env=False) as client:
        return await error_of(client.get(f"http://127.0.0.1:{port}/"))


async def aiohttp_get(library: str, port: int) -> Exception:
    module = pytest.importorskip(library)
    timeout = module.ClientTimeout(sock_read=0.2)
    async with module.ClientSession(timeout=timeout, raise_for_status=True) as client:
        return await error_of(client.get(f"http://127.0.0.1:{port}/"))


async def redis_ping(_: str, port: int) -> Exception:
    client = redis.asyncio.Redis(port=port, socket_timeout=0.2, retry=NO_RETRY, protocol=2)
    try:
        return await error_of(client.ping())
    finally:
        await client.aclose()


NO_RETRY: Any = Retry(redis.backoff.NoBackoff(), 0)
CLIENTS = [
    *((httpx_get, library) for library in LIBRARIES),
    (aiohttp_get, "aiohttp"),
    (redis_ping, "redis"),
]


@pytest.mark.parametrize(("get", "library"), CLIENTS)
def test_a_refused_connection_is_passing_for_every_client(get: Any, library: str) -> None:
    assert classify(asyncio.run(get(library, unused_port()))) == TRANSIENT


@pytest.mark.parametrize("answer", [b"", None])
@pytest.mark.parametrize(("get", "library"), CLIENTS)
def test_after_a_request_a_hang_up_or_silence_leaves_the_outcome_unknown(
    get: Any, library: str, answer: bytes | None
) -> None:
    async def call() -> Exception:
        async with server(answer) as port:
            error: Exception = await get(library, port)
            return error

    assert classify(asyncio.run(call())) == UNKNOWN


# ---------------------------------------------------------------------- aiohttp


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"503 Busy\r\nRetry-After: 9", Failure(FailureKind.TRANSIENT, 9.0)),
        (b"429 Slow\r\nretry-after-ms: 250", Failure(FailureKind.THROTTLED, 0.25)),
        (b"401 No", FATAL),
    ],
)
def test_aiohttp_keeps_the_headers_on_the_error(answer: bytes, expected: Failure) -> None:
    async def call() -> Exception:
        async with server(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % answer) as port:
            return await aiohttp_get("aiohttp", port)

    assert classify(asyncio.run(call())) == expected


def test_a_deprecated_attribute_of_aiohttp_is_left_alone(
    recwarn: pytest.WarningsRecorder,
) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    assert classify(aiohttp.ClientResponseError(None, (), status=0)) == UNKNOWN
    assert classify(aiohttp.ClientResponseError(None, (), status=429)) == THROTTLED
    assert not recwarn.list


# ---------------------------------------------------------------------- redis


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"-NOAUTH Authentication required.", FATAL),
        (b"-WRONGPASS invalid username-password pair", FATAL),
        (b"-NOPERM no permissions to run the command", FATAL),
        (b"-WRONGTYPE Operation against a key holding the wrong kind of value", FATAL),
        (b"-LOADING Redis is loading the dataset in memory", TRANSIENT),
        (b"-READONLY You can't write against a read only replica.", TRANSIENT),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", TRANSIENT),
        (b"-CLUSTERDOWN The cluster is down", TRANSIENT),
        (b"-TRYAGAIN Multiple keys request during rehashing", TRANSIENT),
    ],
)
def test_what_a_redis_server_refuses_is_told_apart(reply: bytes, expected: Failure) -> None:
    async def call() -> Exception:
        async with server(reply + b"\r\n") as port:
            return await redis_ping("redis", port)

    assert classify(asyncio.run(call())) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis.exceptions.AuthenticationError("m"), FATAL),
        (redis.exceptions.AuthorizationError("m"), FATAL),
        (redis.exceptions.WatchError("m"), FATAL),
        (redis.exceptions.LockError("m"), FATAL),
        (redis.exceptions.MaxConnectionsError("m"), LOCAL),
        (redis.exceptions.ConnectionError("No connection available."), LOCAL),
        (redis.exceptions.ConnectionError("max number of clients reached"), TRANSIENT),
        (redis.exceptions.TimeoutError("Timeout connecting to server"), TRANSIENT),
        (redis.exceptions.TimeoutError("Timeout reading from socket"), UNKNOWN),
        (redis.exceptions.InvalidResponse("m"), UNKNOWN),
    ],
)
def test_what_redis_raises_by_itself_has_a_verdict(error: Exception, expected: Failure) -> None:
    assert classify(error) == expected


# ---------------------------------------------------------------------- openai, anthropic


def openai_error(respond: Respond, *, library: str = "httpx2", stream: bool = False) -> Exception:
    openai, module = pytest.importorskip("openai"), pytest.importorskip(library)
    client = openai.OpenAI(
        api_key="key",
        base_url="http://provider/v1",
        max_retries=0,
        http_client=module.Client(transport=module.MockTransport(respond)),
    )
    with pytest.raises(openai.OpenAIError) as caught:
        list(client.chat.completions.create(model="m", messages=[], stream=stream))
    error: Exception = caught.value
    return error


def openai_status(status: int, headers: Any = None, error: object = None) -> Exception:
    httpx2 = pytest.importorskip("httpx2")
    body = {"error": error}
    return openai_error(lambda _: httpx2.Response(status, headers=headers, json=body))


ODD_BODIES: list[Any] = [None, "m", 5, [], [{}], {}]


def said(code: object, kind: object = None) -> dict[str, object]:
    return {"message": "m", "type": kind, "param": None, "code": code}


@pytest.mark.parametrize(("status", "headers", "expected"), STATUSES)
def test_openai_statuses_mean_what_bare_ones_do(
    status: int, headers: dict[str, str], expected: Failure
) -> None:
    assert classify(openai_status(status, headers, said("odd"))) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (said("rate_limit_exceeded", "tokens"), Failure(FailureKind.THROTTLED, 2.0)),
        (said("insufficient_quota", "insufficient_quota"), FATAL),
        (said(None, "insufficient_quota"), FATAL),
        (said("credit_balance_exhausted"), FATAL),
        (said("billing_hard_limit_reached", "invalid_request_error"), FATAL),
        (said("Daily_Quota_Exceeded"), FATAL),
        (said("requests_per_day"), FATAL),
        ({"error": {"code": "insufficient_quota"}}, FATAL),
        *((odd, Failure(FailureKind.THROTTLED, 2.0)) for odd in ODD_BODIES),
        (said(["insufficient_quota"], {"type": 1}), Failure(FailureKind.THROTTLED, 2.0)),
    ],
)
def test_a_429_about_money_or_the_day_is_fatal(error: object, expected: Failure) -> None:
    assert classify(openai_status(429, {"retry-after": "2"}, error)) == expected


def test_an_explicit_advice_to_retry_overrides_a_spent_quota() -> None:
    error = openai_status(429, {"x-should-retry": "true"}, said("insufficient_quota"))
    assert classify(error) == THROTTLED


def test_a_spent_quota_is_read_from_a_body_that_still_has_its_envelope() -> None:
    error = status_error("httpx", 429)
    error.body = {"error": {"type": "insufficient_quota"}}  # type: ignore[attr-defined]
    assert classify(error) == FATAL


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, UNKNOWN) for name in ("ReadTimeout", "WriteTimeout", "ReadError")),
        ("RemoteProtocolError", UNKNOWN),
        *((name, TRANSIENT) for name in ("ConnectTimeout", "ConnectError")),
        ("PoolTimeout", LOCAL),
        ("LocalProtocolError", FATAL),
    ],
)
def test_openai_connection_errors_are_judged_by_what_lies_beneath(
    library: str, name: str, expected: Failure
) -> None:
    transport_error = getattr(pytest.importorskip(library), name)

    def respond(_: Any) -> Any:
        raise transport_error("m")

    assert classify(openai_error(respond, library=library)) == expected


def test_openai_connection_errors_without_a_cause_have_a_default() -> None:
    openai, request = pytest.importorskip("openai"), httpx.Request("POST", "http://provider/")
    error = openai.APIConnectionError(request=request)
    assert classify(error) == TRANSIENT
    assert classify(openai.APITimeoutError(request=request)) == UNKNOWN
    error.__cause__ = error
    assert classify(error) == TRANSIENT


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (said("server_error"), TRANSIENT),
        (said(None, "overloaded"), TRANSIENT),
        (said("rate_limit_exceeded", "invalid_request_error"), THROTTLED),
        (said("context_length_exceeded", "server_error"), FATAL),
        (said("content_filter"), FATAL),
        (said(None, "invalid_request_error"), FATAL),
        (said("insufficient_quota"), FATAL),
        (said(429), THROTTLED),
        (said(400, "BadRequestError"), FATAL),
        (said("502"), TRANSIENT),
        (said(1006), TRANSIENT),
        (said(18), TRANSIENT),
        (said("never_heard_of"), TRANSIENT),
        ("a text", TRANSIENT),
    ],
)
def test_an_error_within_a_stream_is_judged_by_its_body(error: object, expected: Failure) -> None:
    httpx2 = pytest.importorskip("httpx2")
    events = f"data: {json.dumps({'error': error})}\n\n"
    headers = {"content-type": "text/event-stream"}
    raised = openai_error(lambda _: httpx2.Response(200, headers=headers, text=events), stream=True)
    assert not hasattr(raised, "status_code")
    assert classify(raised) == expected


def test_a_client_that_cannot_be_built_is_the_callers_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    openai = pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(openai.OpenAIError) as caught:
        openai.OpenAI().models.list()
    assert classify(caught.value) == FATAL


def anthropic_like(status: int, headers: dict[str, str], error: object = None) -> Exception:
    """An error of the shape that the anthropic SDK raises."""
    names = {"__module__": "anthropic"}
    root = type("AnthropicError", (Exception,), names)
    base = type("APIStatusError", (type("APIError", (root,), names),), names)
    raised: Any = base("m")
    raised.response = httpx.Response(status, headers=headers)
    raised.status_code = status
    raised.body = {"type": "error", "error": error}
    return raised  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "3"}, Failure(FailureKind.THROTTLED, 3.0)),
        ({"retry-after": "nonsense"}, THROTTLED),
        ({"x-should-retry": "true"}, THROTTLED),
        ({}, FATAL),
        ({"x-should-retry": "perhaps"}, FATAL),
        ({"anthropic-ratelimit-tokens-reset": "2099-01-01T00:00:00Z"}, FATAL),
    ],
)
def test_an_anthropic_429_without_a_retry_after_is_its_spend_limit(
    headers: dict[str, str], expected: Failure
) -> None:
    assert classify(anthropic_like(429, headers)) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", TRANSIENT),
        ("rate_limit_error", THROTTLED),
        ("invalid_request_error", FATAL),
    ],
)
def test_an_anthropic_error_within_a_stream_of_status_200_is_judged_by_its_body(
    kind: str, expected: Failure
) -> None:
    assert classify(anthropic_like(200, {}, {"type": kind})) == expected


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
def test_a_retry_error_is_unwrapped_and_judged_by_what_it_gave_up_on(times: int) -> None:
    error = FileNotFoundError()
    assert root_cause(given_up(error, times=times)) is error
    assert classify(given_up(error, times=times)) == FATAL
    assert classify(ExceptionGroup("m", [given_up(error, times=times)])) == FATAL


def test_unwrapping_leaves_other_errors_alone() -> None:
    error = RuntimeError()
    error.last_attempt = 5  # type: ignore[attr-defined]
    error.__cause__ = ValueError()
    cancelled = asyncio.CancelledError()
    assert root_cause(error) is error
    assert root_cause(cancelled) is cancelled


def test_unwrapping_ends_where_there_is_no_error_to_find() -> None:
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


def test_a_cancellation_that_tenacity_swallowed_is_not_unwrapped() -> None:
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


def test_a_group_is_as_bad_as_its_worst_member() -> None:
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


def test_verdicts_can_be_sent_to_another_process_and_asked_for_in_threads() -> None:
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
