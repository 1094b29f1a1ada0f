"""Draining behind any ASGI server: the coordinator in the lifespan, probes, refusals that say so.

::

    app = DrainMiddleware(app)

A request that was let in goes on until it ends. Those that come within two seconds of the signal
are let in too: their connections had been accepted already. Later ones get 503 with
``Retry-After``, and so does one that did not end in time. A websocket that waits for its client is
closed with 1012, so that it comes back. ``/livez`` says that the process runs, ``/readyz`` whether
it wants requests.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import math
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from lightrag_resilience.breakers import State
from lightrag_resilience.config.dependency_names import check_name
from lightrag_resilience.config.policies import Wait
from lightrag_resilience.config.validation import problem_with, shown
from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.errors import PolicyError, ShuttingDownError, UnsupportedCallError
from lightrag_resilience.pipeline.registry import Guards, resolve_guards
from lightrag_resilience.shutdown import Coordinator
from lightrag_resilience.text import LONGEST_TEXT, printable

from .request_task import (
    Application,
    Message,
    Receive,
    RequestTask,
    Send,
    connection_close_header,
    retry_after_header,
)
from .scope import route_path

__all__ = ["DrainMiddleware"]

_log = logging.getLogger("lightrag_resilience")

_SHUTS_DOWN = "This process shuts down"
_TRY_AGAIN = 5  # seconds, of a process that is not ready
_NAMED = 10  # tasks in a line of the log
_NOT_THE_APPLICATIONS = frozenset(
    {*("gunicorn", "uvicorn", "hypercorn", "granian"), "asyncio", __name__.partition(".")[0]}
)


class DrainMiddleware:
    """ASGI middleware, around everything else.

    Args:
        app: The application.
        registry: The guards whose calls are waited for; those of the process by default.
        last_requests: Seconds after the signal in which requests still get in.
        ready_while_closed: Names of guards; the process is not ready while one's circuit is open.
        make_coordinator: Makes the coordinator when the server starts, for times of your own.

    Raises:
        UnsupportedCallError: `app` is no application, or `make_coordinator` no function.
        PolicyError: A time is out of bounds, or a name is none.
    """

    def __init__(
        self,
        app: Application,
        *,
        registry: Guards | None = None,
        last_requests: float = 2.0,
        ready_while_closed: Iterable[str] = (),
        make_coordinator: Callable[[Guards], Coordinator] | None = None,
    ) -> None:
        if not callable(app) or not callable(make_coordinator or app):
            given = shown(make_coordinator if callable(app) else app)
            raise UnsupportedCallError(
                "DrainMiddleware(app) takes an ASGI application, and "
                f"make_coordinator=lambda registry: Coordinator(...), not {given}"
            )
        if problem := problem_with(last_requests, Wait):
            raise PolicyError(f"DrainMiddleware: last_requests {problem}")
        if isinstance(ready_while_closed, str):  # its characters would be taken for names
            raise PolicyError(f"DrainMiddleware: write ready_while_closed=[{ready_while_closed!r}]")
        self._app = app
        self._registry = resolve_guards(registry)
        self._last_requests = last_requests
        self._needed = tuple(ready_while_closed)
        for name in self._needed:
            check_name(name)
        self._make = make_coordinator or (lambda registry: Coordinator(registry=registry))
        self.coordinator: Coordinator | None = None
        """What ends the process's work in order; None until the server has started."""
        self._serves = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if self.coordinator is not None and not self._serves:
            self._serves = True
            self.coordinator.listen()  # some servers set their handlers after the lifespan's start
        await self._respond(scope, receive, send)

    async def _respond(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and route_path(scope) in {"/livez", "/readyz"}:
            await self._probe(scope, send)
        elif self.coordinator is None:  # the server has no lifespan, or it has not begun
            with allow_during_drain():
                await self._app(scope, receive, send)
        else:
            await self._serve(self.coordinator, scope, receive, send)

    async def _serve(
        self,
        coordinator: Coordinator,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        serving = RequestTask(coordinator, scope, receive, send)
        is_http = scope["type"] == "http"
        if not coordinator.accepts_new_work(self._last_requests):
            if is_http:
                await self._refuse(scope, send)
            else:
                await receive()  # its wish to connect
                await serving.close()
            return
        try:
            await serving.run(self._app)
        except ShuttingDownError:
            if not is_http:
                await serving.close()
            elif serving.has_ended:
                pass  # the client has its answer; what was to be done after it is written down
            elif serving.has_begun:
                raise  # the server breaks the answer off, and its client sees that
            else:
                await self._refuse(scope, send)

    async def _refuse(self, scope: MutableMapping[str, Any], send: Send) -> None:
        wait = self._retry_after
        await _answer(scope, send, 503, retry_after_header(_SHUTS_DOWN, wait), wait)

    @property
    def _is_draining(self) -> bool:
        return self.coordinator is not None and self.coordinator.is_draining

    @property
    def _retry_after(self) -> int:
        return max(1, math.ceil(self._registry.gate.retry_after))

    # ------------------------------------------------------------------ probes

    async def _probe(self, scope: MutableMapping[str, Any], send: Send) -> None:
        answer = functools.partial(_answer, scope, send)
        if route_path(scope) == "/livez":
            await answer(200, {"status": "alive"})
        elif self._is_draining:
            await answer(503, {"status": "draining"}, self._retry_after)
        elif away := [name for name in self._needed if not self._is_closed(name)]:
            await answer(503, {"status": "not ready", "open": away}, _TRY_AGAIN)
        else:
            await answer(200, {"status": "ready"})

    def _is_closed(self, name: str) -> bool:
        return self._registry.get(name).breaker.state is not State.OPEN

    # ------------------------------------------------------------------ the lifespan

    async def _live(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Begin with the application's own start, and drain before its own end."""
        servers = asyncio.all_tasks()
        async with self._make(self._registry) as coordinator:
            self.coordinator, self._serves = coordinator, False
            coordinator.keep_draining_for(self._last_requests)

            async def receive_and_drain() -> Message:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    coordinator.keep_draining_for(0.0)  # nothing can come any more
                    await coordinator.drain("the server")
                return message

            async def tell_and_send(message: Message) -> None:
                if message["type"].startswith("lifespan.shutdown."):
                    _tell_of_tasks(asyncio.all_tasks() - servers)
                await send(message)

            await self._app(scope, receive_and_drain, tell_and_send)


def _tell_of_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Name tasks of the application that end with the process, as nobody tracked them."""
    names = [
        printable(task.get_name(), LONGEST_TEXT)
        for task in tasks
        if (frame := getattr(task.get_coro(), "cr_frame", None)) is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_THE_APPLICATIONS
    ]
    if names:
        shown = ", ".join(sorted(names)[:_NAMED])
        _log.warning("Not tracked, and unfinished at the end: %d tasks: %s", len(names), shown)


async def _answer(
    scope: MutableMapping[str, Any],
    send: Send,
    status: int,
    content: dict[str, Any],
    retry_after: int | None = None,
) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if retry_after is not None:
        headers += [(b"retry-after", str(retry_after).encode()), *connection_close_header(scope)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
