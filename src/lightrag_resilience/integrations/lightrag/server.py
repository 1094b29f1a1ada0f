"""LightRAG's own server, protected: with its own command line and its own ``.env``.

Two names of its module are replaced: the class `LightRAG`, and the function that makes the
application.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from lightrag_resilience._version import __version__
from lightrag_resilience.config.redis_url import read_address
from lightrag_resilience.config.tokenizer_cache import PRELOAD, is_download_error
from lightrag_resilience.errors import ResilienceError
from lightrag_resilience.integrations.asgi.draining import DrainMiddleware
from lightrag_resilience.integrations.lightrag.serving.health_report import HealthReport
from lightrag_resilience.integrations.lightrag.serving.http_errors import DependencyErrorMiddleware
from lightrag_resilience.integrations.lightrag.serving.metrics_route import show_metrics
from lightrag_resilience.integrations.lightrag.serving.server_config import (
    answer_when_stored,
    configure_gunicorn,
    configure_uvicorn,
)
from lightrag_resilience.integrations.lightrag.serving.shared_locks import recover_shared_locks
from lightrag_resilience.integrations.status.page import StatusPage
from lightrag_resilience.pipeline.registry import guards
from lightrag_resilience.telemetry.correlation import CorrelationMiddleware

from . import protect
from .compat import GUNICORN_CONFIG, GUNICORN_MAIN, SERVER, SHARED_STORAGE
from .coverage import Coverage
from .endpoints import PROVIDER

__all__ = ["protect_on_start", "protect_server", "serve"]

_log = logging.getLogger("lightrag_resilience")

_NO_TABLE = f"LightRAG's tokenizer needs a table that could not be downloaded. {PRELOAD}"


def serve(arguments: Sequence[str], *, gunicorn: bool = False) -> None:
    """Run LightRAG's server until it is stopped.

    Args:
        arguments: As for ``lightrag-server``.
        gunicorn: Whether to run it under Gunicorn, as ``lightrag-gunicorn`` does.

    Raises:
        SettingsError: A ``RESILIENCE_*`` variable is wrong, also one in ``.env``.
        UnsupportedCallError: The server cannot be guarded everywhere, and `RESILIENCE_STRICT` is
            true.
        ResilienceError: The table of LightRAG's tokenizer is missing and cannot be downloaded.
    """
    sys.argv = ["lightrag-gunicorn" if gunicorn else "lightrag-server", *arguments]
    server = importlib.import_module(SERVER)  # it reads .env
    settings = guards().settings  # raises on a wrong variable before anything starts
    coverage = Coverage()
    # In strict mode all of it here: protect() comes only when the server has started.
    coverage.report(of_server=None if settings.strict else True, strict=settings.strict)
    if coverage.is_guarded("server.app"):
        protect_server(server)
        if settings.metrics:  # before anything else imports prometheus_client
            show_metrics(server, is_shared=gunicorn)
    if gunicorn:
        if coverage.is_guarded("server.locks"):
            recover_shared_locks(importlib.import_module(SHARED_STORAGE))
        if coverage.is_guarded("server.gunicorn"):
            configure_gunicorn(importlib.import_module(GUNICORN_CONFIG), settings)
        importlib.import_module(GUNICORN_MAIN).main()
    else:
        if coverage.is_guarded("server.drain"):
            configure_uvicorn(server, settings)
        server.main()


def protect_server(server: ModuleType) -> Callable[[], None]:
    """Make LightRAG's server module create protected applications from now on.

    Args:
        server: The module ``lightrag.api.lightrag_server``.

    Returns:
        A function that undoes it.
    """
    original = server.LightRAG, server.create_app
    options: list[Any] = []  # command-line options of the application that is being made

    @functools.wraps(server.LightRAG, updated=())
    def make(*args: Any, **kwargs: Any) -> Any:
        for each in options:
            _name_providers(each, kwargs)
        try:
            rag = original[0](*args, **kwargs)
        except Exception as error:
            if is_download_error(error):
                raise ResilienceError(_NO_TABLE) from error
            raise
        protect_on_start(rag, then=_log_start)
        return rag

    @functools.wraps(server.create_app)
    def create_app(*args: Any, **kwargs: Any) -> Any:
        options[:] = [*args[:1], *(each for name, each in kwargs.items() if name == "args")]
        app = original[1](*args, **kwargs)
        workers = next((getattr(each, "workers", None) for each in options), None)
        settings = guards().settings
        app.add_middleware(HealthReport)
        app.add_middleware(DependencyErrorMiddleware, workers=workers)
        app.add_middleware(DrainMiddleware, ready_while_closed=settings.ready_while_closed or ())
        if settings.status:  # outside the drain: it answers while other requests are rejected
            app.add_middleware(StatusPage)
        app.add_middleware(CorrelationMiddleware)  # outermost: all others log the id
        return app

    undo_uploads = answer_when_stored()

    def undo() -> None:
        undo_uploads()
        server.LightRAG, server.create_app = original  # type: ignore[attr-defined]

    server.LightRAG, server.create_app = make, create_app  # type: ignore[attr-defined]
    return undo


def _name_providers(options: Any, functions: Mapping[str, Any]) -> None:
    """Mark functions of LightRAG's server with the provider of the binding that they call."""
    embed = getattr(functions.get("embedding_func"), "func", None)
    for family, function in (("embedding", embed), ("rerank", functions.get("rerank_model_func"))):
        binding = getattr(options, f"{family}_binding", None)
        if binding and hasattr(function, "__dict__"):
            vars(function).setdefault(PROVIDER, str(binding))


def _log_start() -> None:
    """Log in one line what is protected, where breakers are shared, and which pages there are.

    Without Redis the registry has already logged that breakers are not shared.
    """
    registry = guards()
    settings = registry.settings
    facts = [", ".join(guard.name for guard in registry)]
    if settings.redis_url is not None:
        location = read_address(settings.redis_url.get_secret_value()).location
        is_up = registry.link is not None and registry.link.is_up
        shared = f"breakers are shared through Redis at {location}"
        facts.append(shared if is_up else f"{shared} as soon as it can be used")
    page = "/resilience" if settings.status else "none, as RESILIENCE_STATUS is not true"
    metrics = "/metrics" if settings.metrics else "none, as RESILIENCE_METRICS is not true"
    facts += [f"status page: {page}", f"metrics: {metrics}"]
    _log.info(
        "Process %d is protected by lightrag_resilience %s: %s",
        *(os.getpid(), __version__, "; ".join(facts)),
    )
    if unknown := [it for it in settings.ready_while_closed or () if registry.find(it) is None]:
        _log.warning(
            "RESILIENCE_READY_WHILE_CLOSED names %s, which LightRAG does not call: /readyz does "
            "not depend on it. Take names of the line above",
            " and ".join(map(repr, unknown)),
        )
    if unused := settings.without_effect_on(guard.name for guard in registry):
        _log.warning(
            "Variables that begin with %s have no effect, as LightRAG calls no such dependency. "
            "Take names of the line above",
            " or ".join(unused),
        )


def protect_on_start(rag: Any, *, then: Callable[[], None] | None = None) -> None:
    """Protect a LightRAG as soon as its storages are initialized: for code that cannot await.

    If the event loop has a coordinator, its drain flushes the storages before the process ends.

    Args:
        rag: The LightRAG.
        then: Called when it is protected.
    """
    initialize = rag.initialize_storages

    @functools.wraps(initialize)
    async def initialize_storages(*args: Any, **kwargs: Any) -> Any:
        result = await initialize(*args, **kwargs)
        await protect(rag)
        if then is not None:
            then()
        coordinator = guards().coordinators.get(asyncio.get_running_loop())
        if coordinator is not None:
            coordinator.on_close(rag.finalize_storages)
        return result

    rag.initialize_storages = initialize_storages
