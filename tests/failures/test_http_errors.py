"""What the errors of HTTP clients and of the drivers over HTTP mean, on the real classes."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import urllib.error
from collections.abc import Callable
from email.message import Message
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from lightrag_resilience.failures.classifier import Failure, FailureKind, classify
from support.lookalikes import errors, importorskip, kinds
from support.verdicts import FATAL, LOCAL, THROTTLED, TRANSIENT, UNKNOWN, caused

Make = Callable[[Any], Exception]


def raised_over(hidden: Exception, error: Exception) -> Exception:
    """The error as a wrapper raises it in the frame that caught the other one."""
    try:
        try:
            raise hidden
        except type(hidden):
            raise error  # noqa: B904 - drivers do so
    except type(error) as raised:
        return raised


# ---------------------------------------------------------------------- http.client, urllib


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http.client.RemoteDisconnected("m"), UNKNOWN),
        (http.client.BadStatusLine("m"), UNKNOWN),
        (http.client.IncompleteRead(b""), UNKNOWN),
        (http.client.InvalidURL("m"), FATAL),
        (http.client.CannotSendRequest("m"), LOCAL),
        (urllib.error.URLError(ConnectionRefusedError(111, "m")), TRANSIENT),
        (urllib.error.URLError(socket.gaierror(-2, "m")), TRANSIENT),
        (urllib.error.URLError(TimeoutError("timed out")), UNKNOWN),
        (urllib.error.URLError(ssl.SSLCertVerificationError("m")), TRANSIENT),
        (urllib.error.URLError("no host given"), FATAL),
        (urllib.error.ContentTooShortError("m", ("f", Message())), UNKNOWN),
    ],
)
def test_the_standard_librarys_clients(error: Exception, expected: Failure) -> None:
    assert classify(error) == expected


# ---------------------------------------------------------------------- urllib3

URLLIB3: list[tuple[Make, Failure]] = [
    (lambda u: u.NewConnectionError(None, "m"), TRANSIENT),
    (lambda u: u.NameResolutionError("h", None, socket.gaierror()), TRANSIENT),
    (lambda u: u.ConnectTimeoutError(None, "m"), TRANSIENT),
    (lambda u: u.ProxyError("m", OSError()), TRANSIENT),
    (lambda u: u.ReadTimeoutError(None, "/", "m"), UNKNOWN),
    (lambda u: u.ProtocolError("m", ConnectionResetError()), UNKNOWN),
    (lambda u: u.IncompleteRead(1, 2), UNKNOWN),
    (lambda u: u.DecodeError("m"), UNKNOWN),
    (lambda u: u.HTTPError("m"), UNKNOWN),
    (lambda u: caused(u.SSLError("m"), ssl.SSLCertVerificationError("m")), TRANSIENT),
    (lambda u: raised_over(ssl.SSLCertVerificationError("m"), u.SSLError("m")), TRANSIENT),
    (lambda u: u.SSLError("m"), UNKNOWN),
    (lambda u: u.EmptyPoolError(None, "m"), LOCAL),
    (lambda u: u.ClosedPoolError(None, "m"), LOCAL),
    (lambda u: u.MaxRetryError(None, "/", u.NewConnectionError(None, "m")), TRANSIENT),
    (lambda u: u.MaxRetryError(None, "/", u.ProtocolError("m")), UNKNOWN),
    (lambda u: u.MaxRetryError(None, "/", None), UNKNOWN),
    (
        lambda u: u.MaxRetryError(None, "/", u.ResponseError("too many 503 error responses")),
        TRANSIENT,
    ),
    (
        lambda u: u.MaxRetryError(None, "/", u.ResponseError("too many 429 error responses")),
        THROTTLED,
    ),
    (lambda u: u.MaxRetryError(None, "/", u.ResponseError("too many redirects")), FATAL),
    (lambda u: u.LocationParseError("m"), FATAL),
    (lambda u: u.InvalidHeader("m"), FATAL),
]


@pytest.mark.parametrize(("make", "expected"), URLLIB3)
def test_urllib3_errors_by_whether_a_request_was_sent(make: Make, expected: Failure) -> None:
    assert classify(make(importorskip("urllib3.exceptions"))) == expected


# ---------------------------------------------------------------------- requests


def connection_error(r: Any, reason: Exception) -> Exception:
    """As requests makes it of what urllib3 gave up with."""
    u: Any = importorskip("urllib3.exceptions")
    error: Exception = r.ConnectionError(u.MaxRetryError(None, "/", reason))
    return error


REQUESTS: list[tuple[Make, Failure]] = [
    (lambda r: r.ConnectTimeout("m"), TRANSIENT),
    (lambda r: r.ProxyError("m"), TRANSIENT),
    (lambda r: r.ReadTimeout("m"), UNKNOWN),
    (lambda r: r.ConnectionError("m"), UNKNOWN),
    (lambda r: r.ConnectionError(ConnectionResetError()), UNKNOWN),
    (lambda r: connection_error(r, ConnectionRefusedError()), TRANSIENT),
    (lambda r: r.SSLError(ssl.SSLCertVerificationError("m")), TRANSIENT),
    (lambda r: r.ChunkedEncodingError("m"), UNKNOWN),
    (lambda r: r.RequestException("m"), UNKNOWN),
    (lambda r: r.JSONDecodeError("m", "<html>", 0), UNKNOWN),
    (lambda r: r.InvalidJSONError("m"), FATAL),
    *(
        (lambda r, name=name: getattr(r, name)("m"), FATAL)
        for name in ("InvalidURL", "MissingSchema", "InvalidSchema", "InvalidHeader")
    ),
    (lambda r: r.TooManyRedirects("m"), FATAL),
]


@pytest.mark.parametrize(("make", "expected"), REQUESTS)
def test_requests_errors_by_whether_a_request_was_sent(make: Make, expected: Failure) -> None:
    assert classify(make(importorskip("requests.exceptions"))) == expected


@pytest.mark.parametrize(
    ("status", "expected"), [(503, Failure(FailureKind.TRANSIENT, 7.0)), (404, FATAL)]
)
def test_requests_keeps_status_and_headers_in_the_response(status: int, expected: Failure) -> None:
    requests = importorskip("requests")
    response = requests.Response()
    response.status_code, response.headers["Retry-After"] = status, "7"
    with pytest.raises(requests.HTTPError) as raised:
        response.raise_for_status()
    assert classify(raised.value) == expected


# ---------------------------------------------------------------------- where a status is kept


@pytest.mark.parametrize("holder", ["response", "http_response", "raw_response", "resp", "meta"])
@pytest.mark.parametrize("name", ["status_code", "status"])
def test_a_status_and_a_wait_are_read_wherever_an_sdk_keeps_them(holder: str, name: str) -> None:
    error = ValueError("m")
    setattr(error, holder, SimpleNamespace(**{name: 429, "headers": {"Retry-After": "7"}}))
    assert classify(error) == Failure(FailureKind.THROTTLED, 7.0)


# ---------------------------------------------------------------------- closed connections


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Invalid input ConnectionInputs.SEND_HEADERS in state ConnectionState.CLOSED", TRANSIENT),
        ("Invalid input ConnectionInputs.SEND_DATA in state ConnectionState.CLOSED", UNKNOWN),
        ("Invalid input StreamInputs.SEND_DATA in state StreamState.CLOSED", UNKNOWN),
        ("can't handle event type Request when role=CLIENT and state=CLOSED", TRANSIENT),
        ("can't handle event type Data when role=CLIENT and state=MUST_CLOSE", UNKNOWN),
        ("Can't send data when our state is ERROR", UNKNOWN),
        ("Illegal header value b'what state is this'", FATAL),
        ("Too much data for declared Content-Length", FATAL),
        ("Header block missing mandatory :path header", FATAL),
    ],
)
def test_a_connection_that_was_closed_meanwhile_is_no_fault_of_the_caller(
    library: str, text: str, expected: Failure
) -> None:
    assert classify(importorskip(library).LocalProtocolError(text)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("StreamClosedError", UNKNOWN),
        ("NoSuchStreamError", UNKNOWN),
        ("NoAvailableStreamIDError", TRANSIENT),
        ("TooManyStreamsError", TRANSIENT),
    ],
)
def test_a_closed_http_2_stream_is_no_fault_of_the_caller(name: str, expected: Failure) -> None:
    h2 = importorskip("h2.exceptions")
    core = importorskip("httpcore").LocalProtocolError("1")
    beneath = getattr(h2, name)(1) if "Stream" in name[:12] else getattr(h2, name)("m")
    assert classify(caused(httpx.LocalProtocolError("1"), caused(core, beneath))) == expected


# ---------------------------------------------------------------------- OpenSearch

OPENSEARCH: list[tuple[Make, Failure]] = [
    (lambda o: o.ConflictError(409, "version_conflict_engine_exception", {}), FATAL),
    (lambda o: o.RequestError(400, "resource_already_exists_exception", {}), FATAL),
    (lambda o: o.NotFoundError(404, "index_not_found_exception", {}), FATAL),
    (lambda o: o.AuthorizationException(403, "m", {}), FATAL),
    (lambda o: o.TransportError(429, "es_rejected_execution_exception", {}), THROTTLED),
    (lambda o: o.TransportError(503, "no_shard_available_action_exception", {}), TRANSIENT),
    (lambda o: o.ConnectionError("N/A", "m", ConnectionRefusedError()), TRANSIENT),
    (lambda o: o.ConnectionError("N/A", "m", ConnectionResetError()), UNKNOWN),
    (lambda o: o.ConnectionError("N/A", "m", "gone"), UNKNOWN),
    (lambda o: o.ConnectionTimeout("TIMEOUT", "m", TimeoutError()), UNKNOWN),
    (lambda o: o.SSLError("N/A", "m", ssl.SSLCertVerificationError("m")), TRANSIENT),
    (lambda o: o.SerializationError({}, TypeError("m")), FATAL),
    (lambda o: o.ImproperlyConfigured("m"), FATAL),
    (lambda o: o.OpenSearchException("m"), UNKNOWN),
]


@pytest.mark.parametrize(("make", "expected"), OPENSEARCH)
def test_opensearch_errors_by_status(make: Make, expected: Failure) -> None:
    assert classify(make(importorskip("opensearchpy.exceptions"))) == expected


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [([429, 503], UNKNOWN), ([409], FATAL), ([503, 400], FATAL), ([], UNKNOWN)],
)
def test_a_failed_batch_may_be_partly_written(statuses: list[int], expected: Failure) -> None:
    items = [{"index": {"_id": "1", "status": status}} for status in statuses]
    make = importorskip("opensearchpy.helpers.errors").BulkIndexError
    assert classify(make("2 document(s) failed", items)) == expected


def test_a_page_in_opensearchs_place_is_no_bug() -> None:
    module = importorskip("opensearchpy.serializer")
    with pytest.raises(Exception) as raised:  # noqa: PT011 - of the driver's own class
        module.JSONSerializer().loads("<html>")
    assert classify(raised.value) == UNKNOWN


@pytest.mark.parametrize("kind", kinds("elastic_transport"))
def test_elasticsearch_errors_by_the_error_of_its_transport(kind: str) -> None:
    e = errors(kind, "elastic_transport._exceptions")
    answered = SimpleNamespace(status=409, headers={})
    conflict = e.ApiError("m", answered, {})
    assert classify(conflict) == FATAL
    assert classify(e.ApiError("m", SimpleNamespace(status=503, headers={}), {})) == TRANSIENT
    assert classify(e.ConnectionError("m", (ConnectionRefusedError(),))) == TRANSIENT
    assert classify(e.ConnectionTimeout("m", (TimeoutError(),))) == UNKNOWN
    assert classify(e.ConnectionError("m")) == UNKNOWN


# ---------------------------------------------------------------------- Voyage AI, Zhipu AI


def voyage_error(status: int, headers: dict[str, str], body: object) -> Exception:
    """What the real client makes of an answer."""
    requestor = importorskip("voyageai.api_resources.api_requestor").APIRequestor(key="k")
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(Exception) as raised:  # noqa: PT011 - of the SDK's own classes
        requestor._interpret_response_line(text, status, headers)
    return raised.value


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (429, {"retry-after": "7"}, {"detail": "slow"}, Failure(FailureKind.THROTTLED, 7.0)),
        (429, {}, {"detail": "slow"}, THROTTLED),
        (400, {}, {"detail": "Please lower the number of tokens in the batch."}, FATAL),
        (401, {}, {"detail": "Provided API key is invalid."}, FATAL),
        (422, {}, {"detail": "m"}, FATAL),
        (500, {}, "", TRANSIENT),
        (503, {"retry-after": "3"}, "", Failure(FailureKind.TRANSIENT, 3.0)),
        (404, {}, "<html>", FATAL),
        (200, {}, "<html>", UNKNOWN),
        (200, {}, "", UNKNOWN),
    ],
)
def test_voyage_keeps_the_status_under_a_name_of_its_own(
    status: int, headers: dict[str, str], body: object, expected: Failure
) -> None:
    assert classify(voyage_error(status, headers, body)) == expected


VOYAGE: list[tuple[Make, Failure]] = [
    (lambda v: v.AuthenticationError("No API key provided."), FATAL),
    (lambda v: v.RateLimitError("m"), THROTTLED),
    (lambda v: v.Timeout("m"), UNKNOWN),
    (lambda v: v.APIConnectionError("m"), UNKNOWN),
    (lambda v: caused(v.APIConnectionError("m"), httpx.ConnectError("m")), TRANSIENT),
    (lambda v: v.ServerError("m"), TRANSIENT),
]


@pytest.mark.parametrize(("make", "expected"), VOYAGE)
def test_voyage_errors_without_a_status_by_class(make: Make, expected: Failure) -> None:
    assert classify(make(importorskip("voyageai.error"))) == expected


def test_zhipu_errors_by_status_and_cause() -> None:
    z = errors("lookalike", "zhipuai.core._errors")
    request = httpx.Request("POST", "http://provider/")
    limited = httpx.Response(429, headers={"retry-after": "2"}, request=request)
    assert classify(z.APIReachLimitError("m", response=limited)) == Failure(
        FailureKind.THROTTLED, 2.0
    )
    assert classify(caused(z.APIConnectionError("m"), httpx.ConnectError("m"))) == TRANSIENT
    assert classify(caused(z.APITimeoutError("m"), httpx.ReadTimeout("m"))) == UNKNOWN
    assert classify(z.APIResponseError("m")) == UNKNOWN
    assert classify(z.ZhipuAIError("m")) == FATAL
    # LightRAG's binding raises a bare Exception over it.
    bare = Exception("Error calling ChatGLM Embedding API: m")
    assert classify(raised_over(z.APIReachLimitError("m", response=limited), bare)) == Failure(
        FailureKind.THROTTLED, 2.0
    )


# ---------------------------------------------------------------------- psycopg, SQLAlchemy

PSYCOPG: list[tuple[Make, Failure]] = [
    (lambda p: p.errors.UniqueViolation("m"), FATAL),
    (lambda p: p.errors.SerializationFailure("m"), TRANSIENT),
    (lambda p: p.errors.AdminShutdown("m"), TRANSIENT),
    (lambda p: p.errors.TooManyConnections("m"), TRANSIENT),
    (lambda p: p.errors.ConnectionTimeout("m"), TRANSIENT),
    (lambda p: p.OperationalError("connection failed: Connection refused"), TRANSIENT),
    (lambda p: p.OperationalError("consuming input failed: server closed"), UNKNOWN),
    (lambda p: p.OperationalError("the connection is closed"), UNKNOWN),
    (lambda p: p.InterfaceError("the connection is closed"), TRANSIENT),
    (lambda p: p.InterfaceError("m"), FATAL),
    (lambda p: p.ProgrammingError("m"), FATAL),
]


@pytest.mark.parametrize(("make", "expected"), PSYCOPG)
def test_psycopg_errors_by_sqlstate_or_message(make: Make, expected: Failure) -> None:
    assert classify(make(importorskip("psycopg"))) == expected


def test_sqlalchemy_errors_by_the_drivers_error() -> None:
    module = importorskip("sqlalchemy.exc")
    refused, lost = ConnectionRefusedError(111, "m"), ConnectionResetError(104, "m")
    assert classify(module.OperationalError("SELECT", {}, refused)) == TRANSIENT
    assert classify(module.OperationalError("SELECT", {}, lost)) == UNKNOWN
    assert classify(module.InvalidRequestError("m")) == FATAL


# ---------------------------------------------------------------------- wrappers


class StoreError(Exception):
    """A class that no table knows."""


def test_a_wrapper_of_an_unknown_class_is_classified_by_its_known_inner_error() -> None:
    assert classify(StoreError()) == UNKNOWN
    assert classify(caused(StoreError(), ConnectionRefusedError(111, "m"))) == TRANSIENT
    assert classify(caused(StoreError(), httpx.ReadTimeout("m"))) == UNKNOWN
    assert classify(raised_over(httpx.ConnectError("m"), StoreError())) == TRANSIENT
    assert classify(caused(StoreError(), StoreError())) == UNKNOWN


def test_a_bug_inside_a_wrapper_does_not_classify_it() -> None:
    assert classify(caused(StoreError(), KeyError("m"))) == UNKNOWN
    assert classify(raised_over(KeyError("m"), StoreError())) == UNKNOWN


def test_an_error_raised_while_another_is_handled_is_classified_by_itself() -> None:
    """The second call may have been carried out, though the first could not be sent."""

    def send() -> None:
        raise StoreError

    def recover() -> None:
        try:
            raise httpx.ConnectError("m")
        except httpx.ConnectError:
            send()

    with pytest.raises(StoreError) as raised:
        recover()
    assert classify(raised.value) == UNKNOWN


# ---------------------------------------------------------------------- answers that are none


@pytest.mark.parametrize("head", [b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nA b\r\n\r\n"])
def test_an_answer_that_aiohttp_cannot_parse_was_not_its_400(head: bytes) -> None:
    aiohttp = importorskip("aiohttp")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with server, aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientResponseError) as raised:
                await session.get(address)
        assert classify(raised.value) == UNKNOWN

    asyncio.run(main())
    assert classify(aiohttp.ClientResponseError(None, (), status=400)) == FATAL
