"""Request ids: read from headers, kept in logs, sent with calls and returned in responses."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from lightrag_resilience.runtime.request_id import current_id

__all__ = [
    "HEADER",
    "CorrelationFilter",
    "CorrelationMiddleware",
    "add_header",
    "correlated",
    "correlation_id",
    "read_id",
    "send_along",
]

HEADER = "X-Request-ID"
"""The header of a request's id."""

# Bounded, and without characters that could break out of a log line or a header.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,64}", re.ASCII)
_TRACEPARENT = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.ASCII
)
_LONGEST_TRACEPARENT = 256  # characters

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


def correlation_id() -> str | None:
    """The id of the current request, or None."""
    return current_id.get()


@contextmanager
def correlated(identity: str | None = None) -> Iterator[str]:
    """Set the id for a block and the tasks it starts; None makes a new one.

    Raises:
        ValueError: The id is empty, longer than 64 characters, or has invalid ones.
    """
    chosen = uuid.uuid4().hex if identity is None else identity
    if not _REQUEST_ID.fullmatch(chosen):
        raise ValueError("An id has 1 to 64 letters, digits, or any of . _ : / + = @ -")
    token = current_id.set(chosen)
    try:
        yield chosen
    finally:
        current_id.reset(token)


def read_id(headers: Mapping[str, str]) -> str | None:
    """The id in headers with lower-case names; None if it is missing or invalid.

    ``x-request-id`` wins over the trace id of ``traceparent`` (W3C Trace Context, section 3.2).
    """
    given = headers.get("x-request-id", "")
    if _REQUEST_ID.fullmatch(given):
        return given
    return _trace_in(headers.get("traceparent", ""))


def _trace_in(text: str) -> str | None:
    match = _TRACEPARENT.fullmatch(text) if len(text) <= _LONGEST_TRACEPARENT else None
    if match is None:
        return None
    version, trace, parent, more = match.groups()
    # The standard forbids version ff, all-zero ids, and more fields in version 00.
    is_invalid = version == "ff" or (version == "00" and more is not None)
    return None if is_invalid or not trace.strip("0") or not parent.strip("0") else trace


class CorrelationFilter(logging.Filter):
    """Adds the id to each log record as ``correlation_id``; ``-`` if there is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id; never drops a record."""
        record.correlation_id = current_id.get() or "-"
        return True


def send_along(request: Any) -> None:
    """Add the id to a request of httpx, unless it has one."""
    identity = current_id.get()
    if identity is not None and HEADER not in request.headers:
        request.headers[HEADER] = identity


async def add_header(request: Any) -> None:
    """Event hook that sends the id: ``httpx.AsyncClient(event_hooks={"request": [add_header]})``.

    Not needed with `ResilientTransport`.
    """
    send_along(request)


class CorrelationMiddleware:
    """ASGI middleware: takes each request's id or makes one, and returns it in the response.

    Args:
        app: The application.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request under its id."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        with correlated(read_id(headers)) as identity:
            await self._app(scope, receive, _with_header(send, identity))


def _with_header(send: _Send, identity: str) -> _Send:
    async def send_with_id(message: MutableMapping[str, Any]) -> None:
        if message["type"] in {"http.response.start", "websocket.accept"}:
            own = [(HEADER.lower().encode(), identity.encode())]
            others = [pair for pair in message.get("headers", ()) if pair[0].lower() != own[0][0]]
            message = {**message, "headers": [*others, *own]}
        await send(message)

    return send_with_id
