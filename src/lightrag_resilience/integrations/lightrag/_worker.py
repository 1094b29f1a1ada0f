"""The Gunicorn worker of LightRAG's server."""

from __future__ import annotations

from typing import Any

from lightrag.api.gunicorn_worker import LightRAGUvicornWorker

from lightrag_resilience.registry import guards

from ._serving import server_timeout

__all__ = ["Worker"]


class Worker(LightRAGUvicornWorker):  # type: ignore[misc]
    """LightRAG's own, which ends before Gunicorn kills it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.timeout_graceful_shutdown = server_timeout(guards().settings)
