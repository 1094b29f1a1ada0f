"""The Gunicorn worker of LightRAG's server."""

from __future__ import annotations

from multiprocessing import process
from typing import Any

from lightrag_resilience.integrations.gunicorn import DrainingWorker

from .outage_log import log_beside_lightrag

try:
    from lightrag.api.gunicorn_worker import LightRAGUvicornWorker
except ImportError:  # before LightRAG 1.5
    LightRAGUvicornWorker = object

__all__ = ["Worker"]

_Worker: Any = DrainingWorker


class Worker(_Worker, LightRAGUvicornWorker):  # type: ignore[misc]
    """Ends in order, and also, as LightRAG's own, when its master is gone."""

    def init_process(self) -> None:
        """Begin without the master's child, LightRAG's manager of what is shared."""
        children: set[Any] = getattr(process, "_children", set())
        children.clear()  # at its exit it would wait for them, and fail
        log_beside_lightrag()  # LightRAG's hook after the fork has set its own logging up
        super().init_process()
