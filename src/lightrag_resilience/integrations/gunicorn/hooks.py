"""The hooks of Gunicorn's config file, in the order in which they run."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from lightrag_resilience.config.process_environment import read_process_environment
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import AbandonedWork, Journal
from lightrag_resilience.draining.supervisor import grace_period_of, supervisor
from lightrag_resilience.draining.worker_ledger import WorkerLedger
from lightrag_resilience.pipeline.registry import guards
from lightrag_resilience.shutdown import configured_drain

from .time_budget import apply_gunicorn_limits, check_budget, share_gunicorn_log

__all__ = [
    "child_exit",
    "on_exit",
    "on_reload",
    "on_starting",
    "post_fork",
    "post_worker_init",
    "pre_fork",
    "worker_exit",
]

_HEARTBEAT = 0.25  # seconds between two heartbeats and polls of Gunicorn's own worker
_KILL_TIMEOUT = 1.0  # seconds for the kernel to carry a SIGKILL out


# ---------------------------------------------------------------------- in the master


def on_starting(server: Any) -> None:
    """Log what is wrong with the times.

    Raises:
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
    """
    configured = getattr(server.cfg.worker_class, "CONFIG_KWARGS", {})
    for sentence in check_budget(
        graceful_timeout=server.cfg.graceful_timeout,
        timeout=server.cfg.timeout,
        worker_class=server.cfg.worker_class_str,
        uvicorn_timeout=configured.get("timeout_graceful_shutdown"),
    ):
        server.log.warning("%s", sentence)


def on_reload(server: Any) -> None:
    """Check the times again: the reload may have changed them."""
    on_starting(server)


def pre_fork(server: Any, worker: Any) -> None:
    """Create the memory in which the master sees the work in flight of a worker."""
    del server
    worker.ledger = WorkerLedger()


def child_exit(server: Any, worker: Any) -> None:
    """Record the work that was in flight in a worker that died before it could do so itself."""
    ledger: WorkerLedger | None = getattr(worker, "ledger", None)
    if ledger is None:
        return
    worker.ledger = None
    entries, overflow = ledger.entries(), ledger.overflow
    path = ledger.journal or load_settings().shutdown_journal
    ledger.close()
    _mark_dead_for_prometheus(worker.pid)
    if not entries:
        return
    server.log.error("Worker (pid:%s) died with %d in flight", worker.pid, len(entries) + overflow)
    if path is None:
        return
    now = time.time()
    records = [
        AbandonedWork(
            name=entry.name,
            kind=entry.kind,
            state="outcome_unknown",
            seconds=max(now - entry.began, 0.0),
            signal="death of the worker",
            id=entry.id,
            pid=worker.pid,
        )
        for entry in entries
    ]
    try:
        Journal(path).write(records)
    except OSError as error:
        reason = type(error).__name__
        server.log.critical("The journal %s cannot be written: %s", path, reason)


def on_exit(server: Any) -> None:
    """Record the work of workers that were killed last, which Gunicorn does not wait for."""
    for pid, worker in list(server.WORKERS.items()):
        _await_death(pid)
        child_exit(server, worker)


def _await_death(pid: int) -> None:
    ends = time.monotonic() + _KILL_TIMEOUT
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < ends:
            time.sleep(0.01)
    except ChildProcessError:
        return  # Gunicorn has reaped it


def _mark_dead_for_prometheus(pid: int) -> None:
    """Remove a dead worker from prometheus_client's gauges of live processes."""
    if not read_process_environment().multiprocess_folder:
        return
    try:
        from prometheus_client import multiprocess  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        return
    mark_dead: Any = multiprocess.mark_process_dead
    mark_dead(pid)


# ---------------------------------------------------------------------- in a worker


def post_fork(server: Any, worker: Any) -> None:
    """Use the memory of `pre_fork`, and adopt Gunicorn's times."""
    del server
    supervisor().ledger = getattr(worker, "ledger", None)
    apply_gunicorn_limits(worker.cfg.graceful_timeout)


def post_worker_init(worker: Any) -> None:
    """Improve Gunicorn's own ASGI worker, as `DrainingWorker` improves uvicorn's.

    It stops waiting for connections early enough to end the application's lifespan, begins the
    drain also if no signal stopped it, such as at ``max_requests``, and keeps its heartbeat.
    """
    share_gunicorn_log(worker)
    loop = getattr(worker, "loop", None)
    if isinstance(loop, asyncio.AbstractEventLoop):
        drain = configured_drain()
        seconds = grace_period_of(worker.cfg.graceful_timeout) - drain.cancel_grace
        worker.cfg.set("graceful_timeout", max(int(seconds - drain.close_timeout), 1))
        # The worker cancels this task with all others.
        worker.heartbeat = loop.create_task(_send_heartbeats(worker))


async def _send_heartbeats(worker: Any) -> None:
    while True:
        worker.notify()
        if not worker.alive:
            supervisor().drain_all("the worker's end")
            for listener in worker.servers:
                listener.close()
        await asyncio.sleep(_HEARTBEAT)


def worker_exit(server: Any, worker: Any) -> None:
    """End the threads behind shared breakers and sync functions."""
    if worker.pid == os.getpid():
        guards().close()
    else:  # it runs in the master, for a worker whose death Gunicorn noticed late
        child_exit(server, worker)
