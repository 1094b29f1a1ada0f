"""Uvicorn's worker for Gunicorn, so that it ends in order.

What it changes: uvicorn stops waiting before Gunicorn kills; SIGQUIT is a fast stop; the heartbeat
goes on while a drain lasts; tasks that nobody waited for are cancelled instead of vanishing, and
``worker_exit``, ``worker_abort`` and ``atexit`` run after every signal.
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

from lightrag_resilience.draining.process import drain_all, record_all_abandoned
from lightrag_resilience.errors import ResilienceError
from lightrag_resilience.shutdown import configured_drain

from .time_budget import grace_period_of, log_beside, log_gunicorn_limits

__all__ = ["DrainingWorker"]

_LAST_REQUESTS = 2.0  # seconds in which connections go on as before; each ends after an answer
_LAST = 1.0  # seconds between the end of the process and Gunicorn's SIGKILL
_LOOK = 0.02  # seconds between two looks at whether connections are left
_AGAIN = 0.1  # seconds between two cancellations of a task that goes on


class _Server(Server):
    """Begins the drain where uvicorn begins to stop, whatever made it stop."""

    def __init__(self, config: Config, worker: DrainingWorker, last_requests: float) -> None:
        super().__init__(config)
        self._worker = worker
        self.last_requests = last_requests

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.stops_at = now = time.monotonic()
        drain_all("the worker's end")
        for server in self.servers:
            server.close()
        # Uvicorn drops connections without a request; but theirs may be on its way.
        while time.monotonic() < now + self.last_requests and self.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for that
            await asyncio.sleep(_LOOK)
        await super().shutdown(sockets)


class DrainingWorker(UvicornWorker):  # type: ignore[misc] # it publishes no types
    """The worker class; an application in `DrainMiddleware` brings the coordinator.

    Attributes:
        stops_at: Monotonic seconds at which it began to stop.
    """

    stops_at: float | None = None
    _server: _Server | None = None

    def init_signals(self) -> None:
        """Also outside of uvicorn's own time no signal ends the process where it stands.

        Uvicorn puts these back when it has ended, and raises the signal again.
        """
        super().init_signals()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._told_to_stop)
        signal.signal(signal.SIGABRT, self.handle_abort)

    def _told_to_stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._server is None:
            raise SystemExit(0)  # nothing is served yet
        if number == signal.SIGQUIT:  # of the others, uvicorn's own handler has heard
            config: Any = self.config
            config.timeout_graceful_shutdown = self._cancel_grace
            self._server.last_requests = 0.0
        self._server.should_exit = True

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """Gunicorn has heard nothing for too long, so nothing will end in order."""
        record_all_abandoned("SIGABRT")
        super().handle_abort(sig, frame)

    def run(self) -> None:
        """Serve until told to stop, and leave nothing behind."""
        log_beside(self)
        log_gunicorn_limits(self.cfg.graceful_timeout)
        try:
            drain = configured_drain()
        except ResilienceError as error:  # no other worker would fare better
            self.log.critical("%s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        self._cancel_grace = drain.cancel_grace
        self._last_requests = min(_LAST_REQUESTS, drain.timeout / 10)
        config: Any = self.config  # of which it says that its times are whole numbers
        patience = grace_period_of(self.cfg.graceful_timeout)
        ours = patience - drain.cancel_grace - drain.close_timeout - self._last_requests
        theirs = config.timeout_graceful_shutdown
        config.timeout_graceful_shutdown = max(ours if theirs is None else min(ours, theirs), 0.0)
        loop = (self.config.get_loop_factory() or asyncio.new_event_loop)()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._serve())
        finally:
            self._arm()
            loop.run_until_complete(self._cut_off_what_is_left())
            asyncio.set_event_loop(None)
            loop.close()

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        self._server = server = _Server(self.config, self, self._last_requests)
        beating = asyncio.create_task(self._beat())
        try:
            await server.serve(sockets=self.sockets)
        finally:
            beating.cancel()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _beat(self) -> None:
        """Uvicorn tells Gunicorn that it lives only while it serves."""
        while True:
            self.notify()
            await asyncio.sleep(min(1.0, self.timeout / 4) or 1.0)

    async def _cut_off_what_is_left(self) -> None:
        loop = asyncio.get_running_loop()
        ends = time.monotonic() + self._cancel_grace
        left = asyncio.all_tasks() - {asyncio.current_task()}
        while left and time.monotonic() < ends:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=_AGAIN)
        try:
            await asyncio.wait_for(loop.shutdown_asyncgens(), _LAST)
        except TimeoutError:
            self.log.warning("Async generators do not end")

    def _arm(self) -> None:
        """Do not let a thread that never ends keep the process until Gunicorn kills it."""
        now = time.monotonic()
        began = now if self.stops_at is None else self.stops_at
        seconds = max(began + self.cfg.graceful_timeout - _LAST - now, _LAST)
        self.watchdog = threading.Timer(seconds, self._leave)
        self.watchdog.daemon = True
        self.watchdog.start()

    def _leave(self) -> None:
        main = threading.main_thread()
        left = [each for each in threading.enumerate() if not each.daemon and each is not main]
        names = [thread.name for thread in left]
        self.log.error("Left with threads that do not end: %s", names)
        logging.shutdown()
        os._exit(1)
