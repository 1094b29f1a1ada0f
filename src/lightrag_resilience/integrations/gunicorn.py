"""Gunicorn: hooks for its config file, a check of its timeouts, a worker class.

::

    # gunicorn.conf.py
    from lightrag_resilience.integrations.gunicorn import *

    worker_class = "lightrag_resilience.integrations.gunicorn.DrainingWorker"
"""

from __future__ import annotations

from typing import Any

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    """The worker class, which needs uvicorn; the hooks run in the master, and do not."""
    if name != "DrainingWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._gunicorn_worker import DrainingWorker  # noqa: PLC0415 - see above

    return DrainingWorker
