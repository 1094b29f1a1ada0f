"""One id for all that a request leads to: from its headers, in logs and calls, and back to it."""

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

# No more than 64 characters, none of which could break out of a log line or a header.
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
    """The id of what the present code works for, if it has one."""
    return current_id.get()


@contextmanager
def correlated(identity: str | None = None) -> Iterator[str]:
    """Give the block, and tasks begun in it, this id; None makes a new one.

    Raises:
        ValueError: The id is empty, longer than 64 characters, or has odd ones.
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
    """The id in headers whose names are lower case; None where there is none, or an odd one.

    ``x-request-id`` goes before the trace id of ``traceparent`` (W3C Trace Context, section 3.2).
    """
    given = headers.get("x-request-id", "")
    if _REQUEST_ID.fullmatch(given):
        return given
    return _trace_in(headers.get("traceparent", ""))


def _trace_in(text: str) -> str | None:
    found = _TRACEPARENT.fullmatch(text) if len(text) <= _LONGEST_TRACEPARENT else None
    if found is None:
        return None
    version, trace, parent, more = found.groups()
    is_wrong = version == "ff" or (version == "00" and more is not None)
    return None if is_wrong or not trace.strip("0") or not parent.strip("0") else trace


class CorrelationFilter(logging.Filter):
    """Puts the id into each log record, as ``correlation_id``; ``-`` where there is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        record.correlation_id = current_id.get() or "-"
        return True


def send_along(request: Any) -> None:
    """Give a request of httpx the id, unless it has one."""
    identity = current_id.get()
    if identity is not None and HEADER not in request.headers:
        request.headers[HEADER] = identity


async def add_header(request: Any) -> None:
    """Send the id along: ``httpx.AsyncClient(event_hooks={"request": [add_header]})``.

    `ResilientTransport` does so by itself.
    """
    send_along(request)


class CorrelationMiddleware:
    """ASGI: takes each request's id or makes one, and gives it back in the response.

    Args:
        app: What answers.
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
            await self._app(scope, receive, _answering(send, identity))


def _answering(send: _Send, identity: str) -> _Send:
    async def answer(message: MutableMapping[str, Any]) -> None:
        if message["type"] in {"http.response.start", "websocket.accept"}:
            own = [(HEADER.lower().encode(), identity.encode())]
            others = [pair for pair in message.get("headers", ()) if pair[0].lower() != own[0][0]]
            message = {**message, "headers": [*others, *own]}
        await send(message)

    return answer
