"""How LightRAG's servers shut down: in time, with every accepted document stored."""

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
from lightrag_resilience.integrations.lightrag.compat import (
    SHARED_STORAGE,
    START_BACKGROUND,
    UPLOAD_WORK,
)
from lightrag_resilience.integrations.lightrag.work.ingest import on_stored

from .outage_log import log_beside_lightrag

__all__ = ["answer_when_stored", "configure_gunicorn", "configure_uvicorn", "server_timeout"]

_ANSWER_TIMEOUT = 10.0  # seconds for an answer, while the storages are unavailable
_KILL_MARGIN = 5.0  # seconds between the end of a drain and Gunicorn's SIGKILL
_HOOKS = frozenset(
    {"on_starting", "on_reload", "on_exit", "pre_fork", "post_fork", "worker_exit", "child_exit"}
)
"""The hooks that LightRAG passes on to Gunicorn."""
_WORKER = "lightrag_resilience.integrations.lightrag.serving.gunicorn_worker.Worker"


def server_timeout(settings: Settings) -> int:
    """Seconds after which a server may cut off requests: a drain has cancelled them by then."""
    return math.ceil(settings.shutdown_timeout - settings.shutdown_close_timeout)


def configure_uvicorn(server: ModuleType, settings: Settings) -> Callable[[], None]:
    """Make LightRAG's server module run uvicorn with a drain's limit for open requests.

    Returns:
        A function that undoes it.
    """
    original = server.uvicorn

    def run(*args: Any, **kwargs: Any) -> None:
        log_beside_lightrag()  # LightRAG has set its own logging up by now
        original.run(*args, timeout_graceful_shutdown=server_timeout(settings), **kwargs)

    server.uvicorn = SimpleNamespace(run=run)  # type: ignore[attr-defined]

    def undo() -> None:
        server.uvicorn = original  # type: ignore[attr-defined]

    return undo


def configure_gunicorn(config: ModuleType, settings: Settings) -> None:
    """Set our worker, hooks and timeouts in LightRAG's module ``gunicorn_config``."""
    changes: dict[str, Any] = {
        "worker_class": _WORKER,
        "graceful_timeout": math.ceil(settings.shutdown_timeout + _KILL_MARGIN),
    }
    for name in _HOOKS & set(gunicorn.__all__):
        changes[name] = _both(getattr(gunicorn, name), getattr(config, name, None))
    for name, value in changes.items():
        setattr(config, name, value)


def _both(ours: Callable[..., Any], theirs: Callable[..., Any] | None) -> Callable[..., Any]:
    """One hook of two. Gunicorn checks how many arguments it takes, hence `wraps`."""
    if theirs is None:
        return ours
    hook = theirs

    @functools.wraps(hook)
    def both(*args: Any) -> None:
        ours(*args)
        hook(*args)

    return both


def answer_when_stored() -> Callable[[], None]:
    """Make LightRAG's server answer an upload once the documents are in its storages.

    By itself it answers first and stores later: a crash in between loses an accepted document.

    Returns:
        A function that undoes it.
    """
    shared = sys.modules.get(SHARED_STORAGE)
    original = getattr(shared, START_BACKGROUND, None)
    if shared is None or original is None:
        return lambda: None

    @functools.wraps(original)
    async def start(tasks: Any, *, work: Callable[..., Awaitable[None]], **more: Any) -> Any:
        is_upload = getattr(work, "__name__", "") == UPLOAD_WORK
        return await original(tasks, work=_stored_first(work) if is_upload else work, **more)

    def undo() -> None:
        setattr(shared, START_BACKGROUND, original)

    setattr(shared, START_BACKGROUND, start)
    return undo


def _stored_first(work: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(work)
    async def store_first(started: asyncio.Event) -> None:
        token = on_stored.set(started.set)
        timer = asyncio.get_running_loop().call_later(_ANSWER_TIMEOUT, started.set)
        try:
            await work(asyncio.Event())  # LightRAG sets its event before it stores
            started.set()
        finally:
            timer.cancel()
            on_stored.reset(token)

    return store_first
