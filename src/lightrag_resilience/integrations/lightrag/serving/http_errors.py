"""HTTP answers to requests whose dependency failed: 503 with ``Retry-After`` instead of 500.

The same for requests that a drain cancelled. A stream of lines gets one more line that says so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightrag_resilience.config.process_environment import read_process_environment
from lightrag_resilience.errors import CallRejected, DependencyError
from lightrag_resilience.failures.classifier import FailureKind, classify
from lightrag_resilience.integrations.asgi.messages import (
    Application,
    Message,
    Receive,
    Scope,
    Send,
    send_json,
)
from lightrag_resilience.integrations.asgi.request_task import drain_response
from lightrag_resilience.integrations.lightrag.work.context import Request, current_request
from lightrag_resilience.integrations.lightrag.work.query_errors import query_error
from lightrag_resilience.pipeline.registry import Guards, guards
from lightrag_resilience.runtime.request_id import current_id

from .outage_log import FailedRequest, LogSummary, StateChangeFilter, release
from .user_messages import sentence_for

__all__ = ["DependencyErrorMiddleware"]

_log = logging.getLogger("lightrag_resilience")

_DEFAULT_WAIT = 5  # seconds, if none is known: a breaker's first open time
_CANCELLED = "The request was cancelled: the process shuts down"
_LINES = b"application/x-ndjson"
_BODY_HEADERS = (b"content-length", b"content-type", b"content-encoding", b"etag")


class DependencyErrorMiddleware:
    """ASGI middleware: an answer of 500 says which dependency failed, if a guarded call did.

    It becomes 503 with ``Retry-After``, or 502 if waiting does not help, with a JSON body:
    ``detail`` for users, ``cause`` for operators, ``dependency``, ``retry_after`` (seconds) and, if
    the request has one, ``request_id``. The last line of a stream has the same, with ``error`` in
    place of ``detail``.

    Args:
        app: The application, which calls a protected LightRAG.
        registry: The guards of these calls; those of the process by default.
        workers: Processes that write to one log; None reads it from the environment.
    """

    def __init__(
        self, app: Application, *, registry: Guards | None = None, workers: int | None = None
    ) -> None:
        self._app = app
        self._registry = registry
        self._workers = max(read_process_environment().workers if workers is None else workers, 1)
        self._failed = LogSummary(
            "requests failed with a dependency", longest=16, calm=1, workers=self._workers
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the application's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._failed, scope)
        token = current_request.set(answer.request)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if answer.is_started or answer.request.last is None:
                raise
            _log.debug("A request failed with a dependency", exc_info=True)
            await answer.refuse(())
        except asyncio.CancelledError:
            gate = (self._registry or guards()).gate
            if not gate.is_closed or not await answer.break_off(gate.retry_after):
                raise
            # The drain cancelled the request to end it; it has an answer now, so do not raise.
        finally:
            answer.end()
            current_request.reset(token)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan with the filter that sums up repeated state changes in the log."""
        changes = StateChangeFilter(workers=self._workers)
        _log.addFilter(changes)
        try:
            await self._app(scope, receive, send)
        finally:
            _log.removeFilter(changes)
            changes.end()
            self._failed.end()


class _Answer:
    """The answer to one request while it is sent."""

    def __init__(self, send: Send, failed: LogSummary, scope: Scope) -> None:
        self.request = Request()
        if failed.is_active:
            self.request.held = []
        self._send = send
        self._failed = failed
        self._scope = scope
        self._status: int | None = None
        self._is_replaced = False
        self._is_of_lines = False
        self._is_ended = False

    @property
    def is_started(self) -> bool:
        return self._status is not None

    def end(self) -> None:
        """The answer is complete: if a dependency failed, log that once."""
        release(self.request)
        is_first, self.request.is_over = not self.request.is_over, True
        if is_first and self.request.last is not None:
            content, scope = _content(self.request), self._scope
            self._failed.add(
                FailedRequest(
                    f"{scope['method']} {scope['path']}",
                    client=scope["client"][0] if scope.get("client") else None,
                    status=self._status,
                    dependency=content["dependency"],
                    cause=content["cause"],
                    identity=content.get("request_id"),
                )
            )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._is_of_lines = _LINES in dict(message.get("headers", ())).get(b"content-type", b"")
            if message["status"] == 500 and self.request.last is not None:  # noqa: PLR2004
                await self.refuse(message.get("headers", ()))
            else:
                release(self.request)
        elif message["type"] == "http.response.body":
            self._is_ended = not message.get("more_body")
            if self._is_of_lines and self.request.last is not None:
                message = {**message, "body": _for_users(message, self.request)}
        if not self._is_replaced:
            await self._send(message)
        if self._is_ended:
            self.end()

    async def refuse(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Answer in place of the application; its headers stay, except those about the body."""
        self._is_replaced = self.request.is_refused = True
        kept = [(name, value) for name, value in headers if name.lower() not in _BODY_HEADERS]
        await self._answer(_content(self.request), kept)

    async def break_off(self, retry_after: float) -> bool:
        """End the answer of a cancelled request; False if it is too late for that."""
        content = drain_response(_CANCELLED, max(1, math.ceil(retry_after)))
        if not self.is_started:
            await self._answer(content, [(b"connection", b"close")])
        elif self._is_of_lines and not self._is_replaced and not self._is_ended:
            await self._send({"type": "http.response.body", "body": _as_line(content)})
        else:
            return False
        return True

    async def _answer(self, content: Mapping[str, Any], headers: list[tuple[bytes, bytes]]) -> None:
        wait = content["retry_after"]
        if wait is not None:
            headers = [*headers, (b"retry-after", str(wait).encode())]
        self._status = status = 502 if wait is None else 503
        await send_json(self._send, status, content, headers)


def _for_users(message: Message, request: Request) -> Any:
    """Lines of a stream; an error that LightRAG writes becomes the sentence for users."""
    body = message.get("body", b"")
    if b'"error"' not in body:
        return body
    content = _content(request)
    cause, detail = (json.dumps(content[name])[1:-1].encode() for name in ("cause", "detail"))
    if body.strip() == b'{"error": "%b"}' % cause:
        return _as_line(content)
    return body.replace(
        cause, detail
    )  # in the format of the other APIs that LightRAG serves, such as Ollama's


def _content(request: Request) -> dict[str, Any]:
    """The JSON body about the failure in a request."""
    assert request.last is not None  # noqa: S101 - all callers check it
    dependency, error = request.last
    typed = query_error(dependency, error)
    name, hint = dependency, None
    if isinstance(typed, DependencyError):
        name, hint = typed.dependency, typed.retry_after
    may_recover = isinstance(error, CallRejected) or classify(error).kind is not FailureKind.FATAL
    wait = (_DEFAULT_WAIT if hint is None else max(1, math.ceil(hint))) if may_recover else None
    content = {
        "detail": sentence_for(name, error, wait, is_cut_off=request.is_cut_off),
        "cause": str(typed),
        "dependency": name,
        "retry_after": wait,
    }
    identity = current_id.get()
    return content if identity is None else content | {"request_id": identity}


def _as_line(content: Mapping[str, Any]) -> bytes:
    """The last line of a stream. LightRAG's web UI shows its ``error`` to the user."""
    line = {"error" if name == "detail" else name: value for name, value in content.items()}
    return json.dumps(line).encode() + b"\n"
