"""Uvicorn's worker for Gunicorn, with a graceful shutdown.

What it changes: uvicorn stops waiting before Gunicorn kills; SIGQUIT is a fast stop; the heartbeat
continues during a drain; untracked tasks are cancelled instead of vanishing, and ``worker_exit``,
``worker_abort`` and ``atexit`` run after every signal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from lightrag_resilience.draining.supervisor import grace_period_of, supervisor
from lightrag_resilience.errors import ResilienceError
from lightrag_resilience.shutdown import configured_drain

from .time_budget import apply_gunicorn_limits, share_gunicorn_log

__all__ = ["DrainingWorker"]

_LAST_REQUESTS = 2.0  # seconds in which open connections may still send requests
_SPARE = 1.0  # seconds between the end of the process and Gunicorn's SIGKILL
_POLL = 0.02  # seconds between two polls of whether connections are left
_CANCEL_AGAIN = 0.1  # seconds between two cancellations of a task that goes on


class _Server(Server):
    """Begins the drain when uvicorn begins to stop, for whatever reason."""

    def __init__(self, config: Config, worker: DrainingWorker, last_requests: float) -> None:
        super().__init__(config)
        self._worker = worker
        self.last_requests = last_requests

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.stops_at = now = time.monotonic()
        supervisor().drain_all("the worker's end")
        for server in self.servers:
            server.close()
        # Uvicorn drops connections without a request, but one may already be on its way.
        while time.monotonic() < now + self.last_requests and self.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for that
            await asyncio.sleep(_POLL)
        await super().shutdown(sockets)


class DrainingWorker(UvicornWorker):  # type: ignore[misc] # it publishes no types
    """The worker class. Wrap the application in `DrainMiddleware`, which has the coordinator.

    Attributes:
        stops_at: Monotonic seconds at which it began to stop.
    """

    stops_at: float | None = None
    _server: _Server | None = None

    def init_signals(self) -> None:
        """Install handlers that hold before and after uvicorn has its own.

        Uvicorn restores them when it has stopped, and raises the signal again.
        """
        super().init_signals()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGABRT, self.handle_abort)

    def _on_stop_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._server is None:
            raise SystemExit(0)  # nothing is served yet
        if number == signal.SIGQUIT:  # uvicorn itself handles the others only
            config: Any = self.config
            config.timeout_graceful_shutdown = self._cancel_grace
            self._server.last_requests = 0.0
        self._server.should_exit = True

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """Record everything: Gunicorn missed the heartbeat for too long and is about to kill."""
        supervisor().record_all_abandoned("SIGABRT")
        super().handle_abort(sig, frame)

    def run(self) -> None:
        """Serve until a stop signal, then drain and end everything."""
        share_gunicorn_log(self)
        apply_gunicorn_limits(self.cfg.graceful_timeout)
        try:
            drain = configured_drain()
        except ResilienceError as error:  # every other worker would fail too
            self.log.critical("%s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        self._cancel_grace = drain.cancel_grace
        self._last_requests = min(_LAST_REQUESTS, drain.timeout / 10)
        config: Any = self.config  # it declares its times as integers
        longest = grace_period_of(self.cfg.graceful_timeout)
        ours = longest - drain.cancel_grace - drain.close_timeout - self._last_requests
        theirs = config.timeout_graceful_shutdown
        config.timeout_graceful_shutdown = max(ours if theirs is None else min(ours, theirs), 0.0)
        loop = (self.config.get_loop_factory() or asyncio.new_event_loop)()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._serve())
        finally:
            self._start_watchdog()
            loop.run_until_complete(self._cancel_remaining())
            asyncio.set_event_loop(None)
            loop.close()

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        self._server = server = _Server(self.config, self, self._last_requests)
        heartbeat = asyncio.create_task(self._send_heartbeats())
        try:
            await server.serve(sockets=self.sockets)
        finally:
            heartbeat.cancel()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _send_heartbeats(self) -> None:
        """Send heartbeats during the drain too; uvicorn sends them only while it serves."""
        while True:
            self.notify()
            await asyncio.sleep(min(1.0, self.timeout / 4) or 1.0)

    async def _cancel_remaining(self) -> None:
        loop = asyncio.get_running_loop()
        ends = time.monotonic() + self._cancel_grace
        left = asyncio.all_tasks() - {asyncio.current_task()}
        while left and time.monotonic() < ends:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN)
        try:
            await asyncio.wait_for(loop.shutdown_asyncgens(), _SPARE)
        except TimeoutError:
            self.log.warning("Async generators do not end")

    def _start_watchdog(self) -> None:
        """Exit before Gunicorn kills, even if a thread never ends."""
        now = time.monotonic()
        began = now if self.stops_at is None else self.stops_at
        seconds = max(began + self.cfg.graceful_timeout - _SPARE - now, _SPARE)
        self.watchdog = threading.Timer(seconds, self._exit_despite_threads)
        self.watchdog.daemon = True
        self.watchdog.start()

    def _exit_despite_threads(self) -> None:
        main = threading.main_thread()
        left = [each for each in threading.enumerate() if not each.daemon and each is not main]
        names = [thread.name for thread in left]
        self.log.error("Exit with threads that do not end: %s", names)
        logging.shutdown()
        os._exit(1)
