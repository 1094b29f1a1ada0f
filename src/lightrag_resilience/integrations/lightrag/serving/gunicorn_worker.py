"""The Gunicorn worker of LightRAG's server."""

from __future__ import annotations

from multiprocessing import process
from typing import Any

from lightrag_resilience.integrations.gunicorn import DrainingWorker
from lightrag_resilience.integrations.lightrag.compat import worker_class

from .outage_log import log_beside_lightrag

__all__ = ["Worker"]

_Draining: Any = DrainingWorker
_LightRAGs: Any = worker_class()


class Worker(_Draining, _LightRAGs):  # type: ignore[misc]
    """Drains on SIGTERM, and exits when its master is gone, as LightRAG's own worker does."""

    def init_process(self) -> None:
        """Start without the master's child process, LightRAG's manager of shared state."""
        children: set[Any] = getattr(process, "_children", set())
        children.clear()  # else multiprocessing would join the inherited child at exit, and fail
        log_beside_lightrag()  # after LightRAG's post-fork hook, which sets up its logging
        super().init_process()
