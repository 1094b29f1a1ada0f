"""One request or websocket as a piece of work: waited for, given up, and nothing in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.errors import ShuttingDownError
from lightrag_resilience.runtime.request_id import current_id
from lightrag_resilience.runtime.tasks import cancel_until_done, is_being_cancelled
from lightrag_resilience.shutdown import Coordinator
from lightrag_resilience.text import as_words, printable

from .scope import route_path

__all__ = [
    "STOPS",
    "Application",
    "Message",
    "Receive",
    "RequestTask",
    "Send",
    "connection_close_header",
    "request_label",
    "retry_after_header",
]

STOPS = "This server is about to stop or restart."

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_log = logging.getLogger("lightrag_resilience")

_SERVICE_RESTART = 1012  # a websocket's close code: come back
_LONGEST = 24  # characters of a path's first part; what is longer may be a key


def retry_after_header(cause: str, wait: int) -> dict[str, Any]:
    """The body of an answer to a request that a drain refuses or gives up.

    Args:
        cause: Which of both, for the operator.
        wait: Seconds after which another process answers.
    """
    detail = f"{STOPS} Try again in {as_words(wait)}."
    content = {"detail": detail, "cause": cause, "dependency": None, "retry_after": wait}
    identity = current_id.get()
    return content if identity is None else content | {"request_id": identity}


class RequestTask:
    """Runs an application for one scope, in a task that the coordinator waits for.

    A task of its own: a server that has sent the whole answer may cancel its task, and with it
    what the application still does; and what is given up is answered from outside of it.

    Args:
        coordinator: What waits for it.
        scope: The server's.
        receive: The server's.
        send: The server's.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        self._coordinator = coordinator
        self._scope = scope
        self._receive = receive
        self._send = send
        self.has_begun = False
        """Whether the answer has, or the websocket is accepted."""
        self.has_ended = False

    async def run(self, app: Application) -> None:
        """Serve to the end.

        Raises:
            ShuttingDownError: It did not end in time.
        """
        scope = self._scope
        is_websocket = scope["type"] == "websocket"
        receive = self._receive_until_the_drain if is_websocket else self._receive
        kind, name = "websocket" if is_websocket else "request", request_label(scope)
        with allow_during_drain():
            task = asyncio.ensure_future(app(scope, receive, self._send_and_note))
        self._coordinator.track_as(task, kind, name)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            is_given_up = task.cancelled() and self._coordinator.is_draining
            if is_given_up and not is_being_cancelled():
                raise ShuttingDownError(name, None, "and this did not end in time") from None
            if self.has_ended:
                task.add_done_callback(_tell_of_failure)  # the server hears of nothing any more
            else:
                await cancel_until_done([task], every=None)  # it may have much to close
            raise

    async def close(self) -> None:
        """Tell a websocket's client to come back, where it was not told yet."""
        if not self.has_ended:
            self.has_ended = True
            with contextlib.suppress(Exception):  # the server, or the client, was faster
                await self._send({"type": "websocket.close", "code": _SERVICE_RESTART})

    async def _send_and_note(self, message: Message) -> None:
        kind = message["type"]
        if kind in {"http.response.start", "websocket.accept"}:
            self.has_begun = True
        if kind == "http.response.start" and self._coordinator.is_draining:
            message = {
                **message,
                "headers": [*message.get("headers", ()), *connection_close_header(self._scope)],
            }
        await self._send(message)
        if kind in {"http.response.pathsend", "websocket.close"} or (
            kind == "http.response.body" and not message.get("more_body", False)
        ):
            self.has_ended = True

    async def _receive_until_the_drain(self) -> Message:
        """The next message; a drain ends a websocket that waits for one."""
        message = asyncio.ensure_future(self._receive())
        stopping = asyncio.ensure_future(self._coordinator.stopping.wait())
        try:
            await asyncio.wait({message, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                return message.result()
        finally:
            stopping.cancel()
            message.cancel()
        await self.close()
        return {"type": "websocket.disconnect", "code": _SERVICE_RESTART, "reason": ""}


def _tell_of_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("What was to be done after an answer failed: %s", type(error).__name__)


def connection_close_header(scope: MutableMapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """The header that lets a client ask another process next; HTTP/2 has none."""
    is_http_1 = scope.get("http_version", "1.1").startswith("1")
    return [(b"connection", b"close")] if is_http_1 else []


def request_label(scope: MutableMapping[str, Any]) -> str:
    """A request's method and the first part of its path, printable: ``POST /documents/…``."""
    first, _, rest = route_path(scope).lstrip("/").partition("/")
    if len(first) > _LONGEST:
        first, rest = "…", ""
    return printable(f"{scope.get('method', 'websocket')} /{first}{'/…' if rest else ''}")
