"""``/metrics`` in LightRAG's own server."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from lightrag_resilience.config.process_environment import share_metrics
from lightrag_resilience.errors import SettingsError

__all__ = ["show_metrics"]


def show_metrics(server: ModuleType, *, is_shared: bool) -> None:
    """Make the applications that LightRAG's server module creates from now on answer ``/metrics``.

    Args:
        server: The module ``lightrag.api.lightrag_server``.
        is_shared: Whether each answer covers several workers.

    Raises:
        SettingsError: prometheus_client is not installed.
    """
    if is_shared:
        share_metrics()
    try:  # only now: prometheus_client checks for multiprocess mode once, when it is imported
        metrics = importlib.import_module("lightrag_resilience.integrations.metrics").Metrics
    except ModuleNotFoundError as error:
        raise SettingsError(f"RESILIENCE_METRICS is true. {error}") from None
    create_app = server.create_app

    @functools.wraps(create_app)
    def make(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)
        app.add_middleware(metrics)
        return app

    server.create_app = make  # type: ignore[attr-defined]
