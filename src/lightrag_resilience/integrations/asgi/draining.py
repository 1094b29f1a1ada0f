"""Draining behind any ASGI server: a coordinator in the lifespan, probes, and 503 responses.

::

    app = DrainMiddleware(app)

A request that was accepted goes on until it ends. Those that arrive within two seconds of the
signal are accepted too, since their connections were. Later ones get 503 with ``Retry-After``, and
so does one that does not end in time. A websocket that waits for its client is closed with 1012, so
that it connects again. ``/livez`` says that the process runs, ``/readyz`` that it accepts requests.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping
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

from .messages import (
    Application,
    Message,
    Receive,
    Scope,
    Send,
    connection_close_header,
    route_path,
    send_json,
)
from .request_task import RequestTask, drain_response

__all__ = ["DrainMiddleware"]

_log = logging.getLogger("lightrag_resilience")

_SHUTS_DOWN = "This process shuts down"
_NOT_READY_RETRY = 5  # seconds
_MAX_NAMES = 10  # tasks in a log line
_NO_STORE = [(b"cache-control", b"no-store")]
# Packages whose tasks are not the application's.
_SERVERS = frozenset(
    {*("gunicorn", "uvicorn", "hypercorn", "granian"), "asyncio", __name__.partition(".")[0]}
)


class DrainMiddleware:
    """ASGI middleware, around everything else.

    Args:
        app: The application.
        registry: The guards whose calls are waited for; those of the process by default.
        last_requests: Seconds after the signal in which requests are still accepted.
        ready_while_closed: Names of guards; the process is not ready while the circuit
            of one of them is not closed.
        make_coordinator: Makes the coordinator when the server starts; give it for your own times.

    Raises:
        UnsupportedCallError: `app` or `make_coordinator` is not callable.
        PolicyError: `last_requests` is out of bounds, or a name is malformed.
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
        if isinstance(ready_while_closed, str):  # or its characters would be taken for names
            raise PolicyError(f"DrainMiddleware: write ready_while_closed=[{ready_while_closed!r}]")
        self._app = app
        self._registry = resolve_guards(registry)
        self._last_requests = last_requests
        self._needed = tuple(ready_while_closed)
        for name in self._needed:
            check_name(name)
        self._make = make_coordinator or (lambda registry: Coordinator(registry=registry))
        self.coordinator: Coordinator | None = None
        """Drains the process; None until the server has started."""
        self._has_served = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a scope."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(scope, receive, send)
            return
        if self.coordinator is not None and not self._has_served:
            self._has_served = True
            self.coordinator.listen()  # a server may set its handlers after the lifespan starts
        await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and route_path(scope) in {"/livez", "/readyz"}:
            await self._probe(scope, send)
        elif self.coordinator is None:  # the server has no lifespan, or has not started it
            with allow_during_drain():
                await self._app(scope, receive, send)
        else:
            await self._serve(self.coordinator, scope, receive, send)

    async def _serve(
        self,
        coordinator: Coordinator,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        request = RequestTask(coordinator, scope, receive, send)
        is_http = scope["type"] == "http"
        if not coordinator.accepts_new_work(self._last_requests):
            if is_http:
                await self._reject(scope, send)
            else:
                await receive()  # `websocket.connect`, which must come first
                await request.close()
            return
        try:
            await request.run(self._app)
        except ShuttingDownError:
            if not is_http:
                await request.close()
            elif request.has_ended:
                pass  # the client has its response; the work after it is in the journal
            elif request.has_begun:
                raise  # the server breaks the response off, which its client sees
            else:
                await self._reject(scope, send)

    async def _reject(self, scope: Scope, send: Send) -> None:
        wait = self._retry_after
        await _send_unavailable(scope, send, drain_response(_SHUTS_DOWN, wait), wait)

    @property
    def _is_draining(self) -> bool:
        return self.coordinator is not None and self.coordinator.is_draining

    @property
    def _retry_after(self) -> int:
        return max(1, math.ceil(self._registry.gate.retry_after))

    # ------------------------------------------------------------------ probes

    async def _probe(self, scope: Scope, send: Send) -> None:
        if route_path(scope) == "/livez":
            await send_json(send, 200, {"status": "alive"}, _NO_STORE)
        elif self._is_draining:
            await _send_unavailable(scope, send, {"status": "draining"}, self._retry_after)
        elif unavailable := [name for name in self._needed if not self._is_closed(name)]:
            content = {"status": "not ready", "unavailable": unavailable}
            await _send_unavailable(scope, send, content, _NOT_READY_RETRY)
        else:
            await send_json(send, 200, {"status": "ready"}, _NO_STORE)

    def _is_closed(self, name: str) -> bool:
        return self._registry.get(name).breaker.state is State.CLOSED

    # ------------------------------------------------------------------ the lifespan

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application's lifespan in a coordinator, and drain before its shutdown."""
        others = asyncio.all_tasks()
        async with self._make(self._registry) as coordinator:
            self.coordinator, self._has_served = coordinator, False
            coordinator.keep_draining_for(self._last_requests)

            async def receive_and_drain() -> Message:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    coordinator.keep_draining_for(0.0)  # no request can arrive any more
                    await coordinator.drain("the server")
                return message

            async def log_and_send(message: Message) -> None:
                if message["type"].startswith("lifespan.shutdown."):
                    _log_untracked(asyncio.all_tasks() - others)
                await send(message)

            await self._app(scope, receive_and_drain, log_and_send)


def _log_untracked(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Log untracked tasks of the application, which the end of the process cuts off."""
    names = [
        printable(task.get_name(), LONGEST_TEXT)
        for task in tasks
        if (frame := getattr(task.get_coro(), "cr_frame", None)) is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] not in _SERVERS
    ]
    if names:
        shown = ", ".join(sorted(names)[:_MAX_NAMES])
        _log.warning("Not tracked, and unfinished at the end: %d tasks: %s", len(names), shown)


async def _send_unavailable(
    scope: Scope, send: Send, content: Mapping[str, Any], wait: int
) -> None:
    retry_after = (b"retry-after", str(wait).encode())
    headers = [*_NO_STORE, retry_after, *connection_close_header(scope)]
    await send_json(send, 503, content, headers)
