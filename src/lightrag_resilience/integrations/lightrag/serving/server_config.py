"""How LightRAG's servers end: by times that add up, with every accepted document stored."""

from __future__ import annotations

import asyncio
import functools
import math
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from lightrag_resilience.config.settings import Settings
from lightrag_resilience.integrations.gunicorn import hooks as gunicorn
from lightrag_resilience.integrations.lightrag.work.ingest import heard_when_stored

from .outage_log import log_beside_lightrag

__all__ = ["answer_when_stored", "configure_gunicorn", "configure_uvicorn", "server_timeout"]

_SHARED = "lightrag.kg.shared_storage"
_START = "start_reserved_background_task"
_UPLOAD = "_indexing_work"
_LONGEST_WAIT = 10.0  # seconds for an answer, while the storages are away
_TO_SPARE = 5.0  # seconds between the end of a drain and Gunicorn's SIGKILL
_HOOKS = frozenset(
    {"on_starting", "on_reload", "on_exit", "pre_fork", "post_fork", "worker_exit", "child_exit"}
)
"""Those that LightRAG hands on to Gunicorn."""
_WORKER = "lightrag_resilience.integrations.lightrag.serving.gunicorn_worker.Worker"


def server_timeout(settings: Settings) -> int:
    """Seconds after which a server may cut requests off: a drain has given them up by then."""
    return math.ceil(settings.shutdown_timeout - settings.shutdown_close_timeout)


def configure_uvicorn(server: ModuleType, settings: Settings) -> Callable[[], None]:
    """Let LightRAG's server module, when it runs uvicorn, wait for requests no longer than a drain.

    Returns:
        A function that takes it back.
    """
    original = server.uvicorn

    def run(*args: Any, **kwargs: Any) -> None:
        log_beside_lightrag()  # LightRAG has set its own logging up by now
        original.run(*args, timeout_graceful_shutdown=server_timeout(settings), **kwargs)

    server.uvicorn = SimpleNamespace(run=run)  # type: ignore[attr-defined]

    def take_back() -> None:
        server.uvicorn = original  # type: ignore[attr-defined]

    return take_back


def configure_gunicorn(config: ModuleType, settings: Settings) -> None:
    """Set in LightRAG's module ``gunicorn_config`` what it takes to drain before the SIGKILL."""
    changes: dict[str, Any] = {
        "worker_class": _WORKER,
        "graceful_timeout": math.ceil(settings.shutdown_timeout + _TO_SPARE),
    }
    for name in _HOOKS & set(gunicorn.__all__):
        changes[name] = _both(getattr(gunicorn, name), getattr(config, name, None))
    for name, value in changes.items():
        setattr(config, name, value)


def _both(ours: Callable[..., Any], theirs: Callable[..., Any] | None) -> Callable[..., Any]:
    """One hook of two; Gunicorn counts its arguments."""
    if theirs is None:
        return ours
    hook = theirs

    @functools.wraps(hook)
    def both(*args: Any) -> None:
        ours(*args)
        hook(*args)

    return both


def answer_when_stored() -> Callable[[], None]:
    """Let LightRAG's server answer an upload when the documents stand in its storages.

    By itself it answers first and stores later: what it has promised dies with the process.

    Returns:
        A function that takes it back.
    """
    shared = sys.modules.get(_SHARED)
    original = getattr(shared, _START, None)
    if shared is None or original is None:
        return lambda: None

    @functools.wraps(original)
    async def start(tasks: Any, *, work: Callable[..., Awaitable[None]], **more: Any) -> Any:
        is_upload = getattr(work, "__name__", "") == _UPLOAD
        return await original(tasks, work=_stored_first(work) if is_upload else work, **more)

    def take_back() -> None:
        setattr(shared, _START, original)

    setattr(shared, _START, start)
    return take_back


def _stored_first(work: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(work)
    async def after_that(started: asyncio.Event) -> None:
        token = heard_when_stored.set(started.set)
        late = asyncio.get_running_loop().call_later(_LONGEST_WAIT, started.set)
        try:
            await work(asyncio.Event())  # its own begin is nothing to be told of
            started.set()
        finally:
            late.cancel()
            heard_when_stored.reset(token)

    return after_that
