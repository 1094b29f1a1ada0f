"""ASGI middleware that serves ``/metrics`` for Prometheus, of all workers together.

::

    app = Metrics(app)

With ``PROMETHEUS_MULTIPROC_DIR`` any worker answers for all of them, as prometheus_client defines
it; without it, each for itself.
"""

from __future__ import annotations

import contextlib
from typing import Any

import anyio.to_thread

from lightrag_resilience.config.process_environment import read_process_environment
from lightrag_resilience.integrations.asgi.messages import (
    Application,
    Receive,
    Scope,
    Send,
    route_path,
    send_response,
)
from lightrag_resilience.pipeline.registry import Guards, resolve_guards
from lightrag_resilience.telemetry.prometheus import Observation, observe  # says what is missing

# isort: split
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["Metrics"]


class Metrics:
    """ASGI middleware that keeps metrics from the start of the server, in each worker.

    Args:
        app: The application.
        registry: The guards whose metrics are kept; those of the process by default.
        path: The path of the metrics.
        collected: Holds the metrics; with ``PROMETHEUS_MULTIPROC_DIR`` its files are shown instead.
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a scope."""
        if not self._has_begun:  # the constructor may run before the fork of the workers
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
        """Stop keeping metrics; the end of the lifespan calls this."""
        if self._observation is not None:
            self._observation.close()
            self._observation = None

    def _begin(self) -> None:
        self._has_begun = True
        with contextlib.suppress(ValueError):  # the application has called observe() itself
            self._observation = observe(self._guards, registry=self._collected)

    async def _answer(self, scope: Scope, send: Send) -> None:
        if scope["method"] not in {"GET", "HEAD"}:
            await send_response(send, 405, headers=[(b"allow", b"GET, HEAD")])
            return
        accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
        # Reading the files of all workers takes milliseconds: too long for the event loop.
        kind, body = await anyio.to_thread.run_sync(self._render, accepted.decode("latin-1"))
        body = body if scope["method"] == "GET" else b""
        await send_response(send, 200, body, [(b"content-type", kind)])

    def _render(self, accepted: str) -> tuple[bytes, bytes]:
        """Content type and text, in the format that the scraper accepts."""
        try:
            write, kind = choose_encoder(accepted)
        except Exception:  # noqa: BLE001 - prometheus_client fails on some headers that a client may send
            write, kind = choose_encoder("")
        shown = self._collected
        if folder := read_process_environment().multiprocess_folder:
            shown = CollectorRegistry()
            collector: Any = MultiProcessCollector
            collector(shown, path=folder)
        return kind.encode(), write(shown)
