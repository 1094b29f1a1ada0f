"""The hooks of Gunicorn's config file, in the order of a process's life."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from lightrag_resilience.config.process_environment import read_process_environment
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import AbandonedWork, Journal
from lightrag_resilience.draining.process import drain_all
from lightrag_resilience.draining.supervisor import supervisor
from lightrag_resilience.draining.worker_ledger import WorkerLedger
from lightrag_resilience.pipeline.registry import guards
from lightrag_resilience.shutdown import configured_drain

from .time_budget import check_budget, grace_period_of, log_beside, log_gunicorn_limits

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

_BEAT = 0.25  # seconds between two looks at whether Gunicorn's own worker is told to stop
_DEATH = 1.0  # seconds that the kernel may take for a SIGKILL


# ---------------------------------------------------------------------- in the master


def on_starting(server: Any) -> None:
    """Say what is wrong with the times.

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
    """Say it again: they may have changed."""
    on_starting(server)


def pre_fork(server: Any, worker: Any) -> None:
    """Make the memory in which the master sees what a worker has in flight."""
    del server
    worker.ledger = WorkerLedger()


def child_exit(server: Any, worker: Any) -> None:
    """Write down what a worker had in flight that did not live to do so itself."""
    ledger: WorkerLedger | None = getattr(worker, "ledger", None)
    if ledger is None:
        return
    worker.ledger = None
    lines, more = ledger.entries(), ledger.overflow
    path = ledger.journal or load_settings().shutdown_journal
    ledger.close()
    _mark_dead_for_prometheus(worker.pid)
    if not lines:
        return
    server.log.error("Worker (pid:%s) died with %d in flight", worker.pid, len(lines) + more)
    if path is None:
        return
    now = time.time()
    records = [
        AbandonedWork(
            name=line.name,
            kind=line.kind,
            state="outcome_unknown",
            seconds=max(now - line.began, 0.0),
            signal="death of the worker",
            id=line.id,
            pid=worker.pid,
        )
        for line in lines
    ]
    try:
        Journal(path).write(records)
    except OSError as error:
        reason = type(error).__name__
        server.log.critical("The journal %s cannot be written: %s", path, reason)


def on_exit(server: Any) -> None:
    """The same for workers that were killed last: Gunicorn does not wait for these."""
    for pid, worker in list(server.WORKERS.items()):
        _await_death(pid)
        child_exit(server, worker)


def _await_death(pid: int) -> None:
    ends = time.monotonic() + _DEATH
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < ends:
            time.sleep(0.01)
    except ChildProcessError:
        return  # Gunicorn itself has reaped it


def _mark_dead_for_prometheus(pid: int) -> None:
    """Gauges of the living leave out a worker that has died."""
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
    """Begin to write to that memory."""
    del server
    supervisor.ledger = getattr(worker, "ledger", None)
    log_gunicorn_limits(worker.cfg.graceful_timeout)


def post_worker_init(worker: Any) -> None:
    """Mend Gunicorn's own ASGI worker, as `DrainingWorker` mends uvicorn's.

    It stops waiting for connections in time to end the application in order, begins the drain also
    where no signal told it to stop, and its heartbeat goes on meanwhile.
    """
    log_beside(worker)
    loop = getattr(worker, "loop", None)
    if isinstance(loop, asyncio.AbstractEventLoop):
        drain = configured_drain()
        seconds = grace_period_of(worker.cfg.graceful_timeout) - drain.cancel_grace
        worker.cfg.set("graceful_timeout", max(int(seconds - drain.close_timeout), 1))
        worker.beating = loop.create_task(_beat(worker))  # cancelled with all else by the worker


async def _beat(worker: Any) -> None:
    while True:
        worker.notify()
        if not worker.alive:
            drain_all("the worker's end")
            for listener in worker.servers:
                listener.close()
        await asyncio.sleep(_BEAT)


def worker_exit(server: Any, worker: Any) -> None:
    """End the threads behind shared breakers and sync functions."""
    if worker.pid == os.getpid():
        guards().close()
    else:  # a worker that nobody saw die, told of in the master
        child_exit(server, worker)
