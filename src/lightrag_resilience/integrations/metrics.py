"""Metrics behind any ASGI server: ``/metrics`` for Prometheus, of all workers together.

::

    app = Metrics(app)

Where ``PROMETHEUS_MULTIPROC_DIR`` names a folder, any worker answers for all, as prometheus_client
has it; else each for itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import anyio.to_thread

from lightrag_resilience.config.process_environment import read_process_environment
from lightrag_resilience.integrations.asgi.scope import route_path
from lightrag_resilience.pipeline.registry import Guards, resolve_guards
from lightrag_resilience.telemetry.prometheus import Observation, observe  # says what is missing

# isort: split
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["Metrics"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


class Metrics:
    """ASGI middleware. It keeps metrics from the start of the server on, in each worker.

    Args:
        app: The application.
        registry: The guards whose metrics are kept; those of the process by default.
        path: Where they are found.
        collected: The registry that is shown; with several processes, what they share.
    """

    def __init__(
        self,
        app: Application,
        *,
        registry: Guards | None = None,
        path: str = "/metrics",
        collected: CollectorRegistry = REGISTRY,
    ) -> None:
        self._app = app
        self._guards = resolve_guards(registry)
        self._path = path
        self._collected = collected
        self._observation: Observation | None = None
        self._has_begun = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve."""
        if not self._has_begun:  # not before the fork, which comes after the constructor
            self._begin()
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                self.close()
        elif scope["type"] == "http" and route_path(scope) == self._path:
            await self._answer(scope, send)
        else:
            await self._app(scope, receive, send)

    def close(self) -> None:
        """Keep metrics no more; the end of the server does it."""
        if self._observation is not None:
            self._observation.close()
            self._observation = None

    def _begin(self) -> None:
        self._has_begun = True
        with contextlib.suppress(ValueError):  # the application keeps them itself
            self._observation = observe(self._guards, registry=self._collected)

    async def _answer(self, scope: MutableMapping[str, Any], send: Send) -> None:
        if scope["method"] not in {"GET", "HEAD"}:
            await _respond(send, 405, [(b"allow", b"GET, HEAD")], b"")
            return
        accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
        # Reading the files of all workers takes milliseconds, and must not hold up the loop.
        kind, body = await anyio.to_thread.run_sync(self._render, accepted.decode("latin-1"))
        is_asked = scope["method"] == "GET"
        await _respond(send, 200, [(b"content-type", kind)], body if is_asked else b"")

    def _render(self, accepted: str) -> tuple[bytes, bytes]:
        """Content type and text, in the format that the scraper wants."""
        try:
            write, kind = choose_encoder(accepted)
        except Exception:  # noqa: BLE001 - a header of a client, which prometheus_client trusts
            write, kind = choose_encoder("")
        shown = self._collected
        if folder := read_process_environment().multiprocess_folder:
            shown = CollectorRegistry()
            collector: Any = MultiProcessCollector
            collector(shown, path=folder)
        return kind.encode(), write(shown)


async def _respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [*headers, length]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
