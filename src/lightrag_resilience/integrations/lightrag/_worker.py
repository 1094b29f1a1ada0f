"""The Gunicorn worker of LightRAG's server."""

from __future__ import annotations

from typing import Any

from lightrag_resilience.integrations.gunicorn import DrainingWorker

try:
    from lightrag.api.gunicorn_worker import LightRAGUvicornWorker
except ImportError:  # before LightRAG 1.5
    LightRAGUvicornWorker = object

__all__ = ["Worker"]

_Worker: Any = DrainingWorker


class Worker(_Worker, LightRAGUvicornWorker):  # type: ignore[misc]
    """Ends in order, and also, as LightRAG's own, when its master is gone."""
