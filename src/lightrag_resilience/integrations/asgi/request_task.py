"""One request or websocket as a tracked task: it ends, or the drain gives it up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.errors import ShuttingDownError
from lightrag_resilience.runtime.request_id import current_id
from lightrag_resilience.runtime.tasks import cancel_until_done, is_being_cancelled
from lightrag_resilience.shutdown import Coordinator
from lightrag_resilience.text import as_words, printable

from .messages import (
    Application,
    Message,
    Receive,
    Scope,
    Send,
    connection_close_header,
    route_path,
)

__all__ = ["STOPS", "RequestTask", "drain_response", "request_label"]

STOPS = "This server is about to stop or restart."

_log = logging.getLogger("lightrag_resilience")

_SERVICE_RESTART = 1012  # close code of a websocket whose client may connect again
_MAX_SEGMENT = 24  # characters of a path's first segment; a longer one may be a key


def drain_response(cause: str, wait: int) -> dict[str, Any]:
    """The JSON body of a response to a request that a drain rejects or gives up.

    Args:
        cause: Which of the two, for the operator.
        wait: Seconds after which another process answers.
    """
    detail = f"{STOPS} Try again in {as_words(wait)}."
    content = {"detail": detail, "cause": cause, "dependency": None, "retry_after": wait}
    identity = current_id.get()
    return content if identity is None else content | {"request_id": identity}


class RequestTask:
    """Runs an application for one scope in a task that the coordinator tracks.

    The task is its own, not the server's: a server may cancel its task once the whole response is
    sent, although the application still works; and a request that is given up gets its response
    from outside the task.

    Args:
        coordinator: Tracks the task.
        scope: The server's.
        receive: The server's.
        send: The server's.
    """

    def __init__(
        self, coordinator: Coordinator, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._coordinator = coordinator
        self._scope = scope
        self._receive = receive
        self._send = send
        self.has_begun = False
        """Whether the response has begun, or the websocket is accepted."""
        self.has_ended = False
        """Whether the response is complete, or the websocket is closed."""

    async def run(self, app: Application) -> None:
        """Serve to the end.

        Raises:
            ShuttingDownError: It did not end in time.
        """
        scope = self._scope
        is_websocket = scope["type"] == "websocket"
        receive = self._receive_until_drain if is_websocket else self._receive
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
                # The server has done its part; what the application still does goes on.
                task.add_done_callback(_log_failure)
            else:
                await cancel_until_done([task], every=None)  # it may have much to close
            raise

    async def close(self) -> None:
        """Close a websocket with 1012, so that its client connects again; once."""
        if not self.has_ended:
            self.has_ended = True
            with contextlib.suppress(Exception):  # the server or the client has closed it
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

    async def _receive_until_drain(self) -> Message:
        """The next message of a websocket; a drain closes one that waits for its client."""
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


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("Work after a response failed: %s", type(error).__name__)


def request_label(scope: Scope) -> str:
    """A request's method and the first segment of its path, printable: ``POST /documents/…``."""
    first, _, rest = route_path(scope).lstrip("/").partition("/")
    if len(first) > _MAX_SEGMENT:
        first, rest = "…", ""
    return printable(f"{scope.get('method', 'websocket')} /{first}{'/…' if rest else ''}")
