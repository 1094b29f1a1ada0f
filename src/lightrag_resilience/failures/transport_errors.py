"""Errors of Python and of HTTP clients: was anything sent, and did an answer arrive?"""

from __future__ import annotations

import errno
import re
from typing import Any, Final

from .http_errors import of_status
from .kinds import FATAL, LOCAL, TRANSIENT, UNKNOWN, Failure, Reader, Table, package_of
from .tracebacks import by_inner, came_of_an_answer, raised_over, was_reading_an_answer

__all__ = ["TRANSPORTS", "by_origin", "by_reading"]

_Answer = Failure | tuple[Exception, ...]


def _by_raised_over(default: Failure) -> Reader:
    def read(exc: BaseException) -> _Answer:
        inner = raised_over(exc)
        return (inner,) if isinstance(inner, Exception) else default

    return read


# ---------------------------------------------------------------------- Python

_UNSENT_ERRNOS: Final = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN}
)


def _by_errno(exc: OSError) -> _Answer:
    """Whether the connection failed; an error of several addresses has no errno of its own."""
    if exc.errno is None and isinstance(below := exc.__cause__, OSError | ExceptionGroup):
        return (below,)
    unsent = exc.errno in _UNSENT_ERRNOS or str(exc).startswith("Multiple exceptions: [Errno ")
    return TRANSIENT if unsent else UNKNOWN


def _by_httpx_beneath(exc: BaseException) -> _Answer:
    """Ollama's error says that it could not connect; httpx's, its context, says why."""
    hidden = exc.__context__
    is_httpx = isinstance(hidden, Exception) and package_of(type(hidden)) in {"httpx", "httpx2"}
    return (hidden,) if is_httpx else UNKNOWN  # type: ignore[return-value]  # mypy forgets why


_PAGE = re.compile(r"\s*<(?:!doctype|html|\?xml)\b", re.IGNORECASE)


def by_reading(exc: BaseException) -> Failure:
    """A broken answer if an SDK or a client was reading one, or if it is a gateway's page.

    Elsewhere it is a bug of the caller.
    """
    is_page = isinstance(text := getattr(exc, "doc", None), str) and _PAGE.match(text)
    return UNKNOWN if is_page or was_reading_an_answer(exc) else FATAL


def by_origin(exc: BaseException) -> Failure:
    """A bug of the caller, unless an unexpected answer caused it, such as a gateway's page."""
    is_of_answer = came_of_an_answer(exc) or (
        isinstance(exc, AttributeError) and _reads_an_answer_field(exc)
    )
    return UNKNOWN if is_of_answer else FATAL


_ANSWER_FIELDS = frozenset({"choices", "data", "embeddings", "candidates", "output", "content"})


def _reads_an_answer_field(exc: AttributeError) -> bool:
    """Whether the caller got a gateway's page from an SDK in place of an object."""
    return isinstance(exc.obj, (str, bytes)) and exc.name in _ANSWER_FIELDS


def _by_members(exc: BaseExceptionGroup[Exception]) -> tuple[Exception, ...]:
    return exc.exceptions  # type: ignore[return-value]  # the group is of Exceptions only


_BUILTINS: Table = {
    "ExceptionGroup": _by_members,
    "OSError": _by_errno,
    "ConnectionError": _by_httpx_beneath,
    **dict.fromkeys(("ConnectionResetError", "ConnectionAbortedError", "BrokenPipeError"), UNKNOWN),
    "ConnectionRefusedError": TRANSIENT,
    "TimeoutError": UNKNOWN,
    **dict.fromkeys(("FileNotFoundError", "FileExistsError", "PermissionError"), FATAL),
    **dict.fromkeys(("IsADirectoryError", "NotADirectoryError"), FATAL),
    **dict.fromkeys(("TypeError", "AttributeError", "ValueError", "LookupError"), by_origin),
    "UnicodeDecodeError": by_reading,
    **dict.fromkeys(("NameError", "AssertionError", "NotImplementedError"), FATAL),
    **dict.fromkeys(("ArithmeticError", "ImportError", "MemoryError", "RecursionError"), FATAL),
}
_HTTP_CLIENT: Table = {
    "HTTPException": UNKNOWN,
    "ImproperConnectionState": LOCAL,  # its connection is not ready for another request
    "InvalidURL": FATAL,
}


def _by_url_reason(exc: Any) -> _Answer:
    """The inner error; a text is about the address: no host, unknown scheme."""
    return (exc.reason,) if isinstance(exc.reason, Exception) else FATAL


_URLLIB: Table = {"URLError": _by_url_reason, "ContentTooShortError": UNKNOWN}
# Validation of a request fails by the caller's fault, validation of an answer does not.
_REQUEST_SCHEMA = re.compile(r"Request|Config|Param|Options")


def _by_schema(exc: Any) -> Failure:
    is_of_request = _REQUEST_SCHEMA.search(str(getattr(exc, "title", "")))
    return FATAL if is_of_request else by_reading(exc)


# ---------------------------------------------------------------------- httpx, aiohttp

_CLOSED = re.compile(
    r"Invalid input \w+\.(?P<input>\w+) in state|can't handle event type (?P<event>\w+)|"
    r"Can't send data when our state"
)
_STREAMS = frozenset({"NoAvailableStreamIDError", "TooManyStreamsError"})
_STREAM_ENDED = frozenset({"StreamClosedError", "NoSuchStreamError"})


def _by_protocol(exc: BaseException) -> Failure:
    """The caller's request breaks the protocol, or the connection was closed meanwhile."""
    below: BaseException | None = exc
    for _ in range(4):
        name = type(below).__name__
        if name in _STREAMS:
            return TRANSIENT
        if name in _STREAM_ENDED:
            return UNKNOWN
        if below is None or (below := below.__cause__ or below.__context__) is None:
            break
    closed = _CLOSED.match(str(exc))
    if closed is None:
        return FATAL
    unsent = closed["input"] == "SEND_HEADERS" or closed["event"] == "Request"
    return TRANSIENT if unsent else UNKNOWN


_HTTPX: Table = {
    **dict.fromkeys(("ConnectTimeout", "ConnectError", "ProxyError"), TRANSIENT),
    "ConnectionNotAvailable": TRANSIENT,
    "PoolTimeout": LOCAL,
    **dict.fromkeys(("TimeoutException", "NetworkError", "RemoteProtocolError"), UNKNOWN),
    "DecodingError": UNKNOWN,  # an answer arrived, but cannot be decoded
    "LocalProtocolError": _by_protocol,
    **dict.fromkeys(("UnsupportedProtocol", "InvalidURL", "CookieConflict"), FATAL),
    **dict.fromkeys(("TooManyRedirects", "StreamError"), FATAL),
}

_AIOHTTP: Table = {
    **dict.fromkeys(("ClientConnectorError", "ConnectionTimeoutError"), TRANSIENT),
    **dict.fromkeys(("ClientConnectionError", "ClientPayloadError", "ContentTypeError"), UNKNOWN),
    **dict.fromkeys(("ClientResponseError", "HttpProcessingError"), UNKNOWN),  # without a status
    **dict.fromkeys(("NonHttpUrlClientError", "InvalidURL", "TooManyRedirects"), FATAL),
    "ServerFingerprintMismatch": FATAL,
}

# ---------------------------------------------------------------------- urllib3, requests

_TOO_MANY_ANSWERS = re.compile(r"too many ([0-9]{3}) error responses")


def _by_many_answers(exc: BaseException) -> Failure:
    """The status in the message of urllib3's own retries."""
    match = _TOO_MANY_ANSWERS.fullmatch(str(exc))
    return FATAL if match is None else of_status(int(match[1]))


_URLLIB3: Table = {
    "HTTPError": _by_raised_over(UNKNOWN),
    "MaxRetryError": by_inner("reason", UNKNOWN),
    "ResponseError": _by_many_answers,
    **dict.fromkeys(("NewConnectionError", "ConnectTimeoutError", "ProxyError"), TRANSIENT),
    **dict.fromkeys(("EmptyPoolError", "FullPoolError", "ClosedPoolError"), LOCAL),
    **dict.fromkeys(("ReadTimeoutError", "TimeoutError", "ProtocolError"), UNKNOWN),
    **dict.fromkeys(("DecodeError", "IncompleteRead", "InvalidChunkLength"), UNKNOWN),
    "HeaderParsingError": UNKNOWN,
    **dict.fromkeys(("HostChangedError", "InvalidHeader", "UnrewindableBodyError"), FATAL),
    **dict.fromkeys(("TimeoutStateError", "LocationValueError"), FATAL),
    **dict.fromkeys(("BodyNotHttplibCompatible", "ResponseNotChunked"), FATAL),
}


def _by_urllib3_beneath(exc: BaseException) -> _Answer:
    """By urllib3's error, its first argument or context, which says whether it was sent."""
    inner = exc.args[0] if exc.args and isinstance(exc.args[0], Exception) else raised_over(exc)
    return (inner,) if isinstance(inner, Exception) else UNKNOWN


_MALFORMED = "InvalidURL MissingSchema InvalidSchema InvalidHeader URLRequired InvalidJSONError"
_REQUESTS: Table = {
    **dict.fromkeys(("RequestException", "Timeout", "ReadTimeout"), UNKNOWN),
    **dict.fromkeys(("ChunkedEncodingError", "ContentDecodingError"), UNKNOWN),
    **dict.fromkeys(("ConnectionError", "RetryError"), _by_urllib3_beneath),
    **dict.fromkeys(("ConnectTimeout", "ProxyError"), TRANSIENT),
    "JSONDecodeError": UNKNOWN,  # of an answer
    **dict.fromkeys(_MALFORMED.split(), FATAL),
    **dict.fromkeys(("TooManyRedirects", "StreamConsumedError", "UnrewindableBodyError"), FATAL),
}
TRANSPORTS: Final[dict[str, Table]] = {
    "builtins": _BUILTINS,
    "socket": dict.fromkeys(("gaierror", "herror"), TRANSIENT),
    "ssl": {"SSLError": UNKNOWN, "SSLCertVerificationError": TRANSIENT},  # in the handshake
    "http": _HTTP_CLIENT,
    "urllib": _URLLIB,
    "json": {"JSONDecodeError": by_reading},
    "pydantic": {"ValidationError": _by_schema},
    "pydantic_core": {"ValidationError": _by_schema},
    "anyio": dict.fromkeys(("EndOfStream", "BrokenResourceError"), UNKNOWN),
    "httpx": _HTTPX,
    "httpx2": _HTTPX,
    "httpcore": _HTTPX,
    "httpcore2": _HTTPX,
    "aiohttp": _AIOHTTP,
    "urllib3": _URLLIB3,
    "requests": _REQUESTS,
}
