"""The worker class, run in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn_worker")
pytest.importorskip("gunicorn")

from gunicorn.config import Config

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.asgi import DrainMiddleware
from lightrag_resilience.integrations.gunicorn.draining_worker import DrainingWorker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Gunicorn needs fork")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    signals = {number: signal.getsignal(number) for number in DrainingWorker.SIGNALS}
    loggers = [logging.getLogger(f"uvicorn.{name}") for name in ("error", "access")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


class Served:
    """A worker and its application."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.beats = 0
        self.left: set[asyncio.Task[None]] = set()
        self.app = DrainMiddleware(self.application, registry=Guards(settings=load_settings({})))
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.config = Config()
        log = logging.getLogger("tests.gunicorn_worker")  # uvicorn shares its list of handlers
        parts = SimpleNamespace(
            error_log=log, access_log=log, close_on_exec=lambda: None, warning=log.warning
        )
        app = SimpleNamespace(wsgi=lambda: self.app)
        self.worker = DrainingWorker(1, 1, [self.listener], app, 15, self.config, parts)
        self.worker.wsgi = self.app
        self.worker.notify = self.beat

    def beat(self) -> None:
        self.beats += 1

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            self.seen.append("lifespan")
            await send({"type": "lifespan.shutdown.complete"})
            return
        seconds = float(scope["query_string"] or 0)
        self.left.add(asyncio.create_task(self.leave()))
        await asyncio.sleep(seconds)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})
        self.seen.append("answer")

    async def leave(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise

    def get(self, seconds: float = 0.0) -> httpx.Response:
        port = self.listener.getsockname()[1] if self.listener.fileno() >= 0 else self.port
        return httpx.get(f"http://127.0.0.1:{port}/?{seconds}", timeout=60)

    def run(self, script: Callable[[], None]) -> None:
        """Serve in this thread, as signals need, while a script runs in another."""
        self.port = self.listener.getsockname()[1]
        thread = threading.Thread(target=script)
        thread.start()
        try:
            self.worker.init_signals()
            self.worker.run()
        finally:
            self.worker.watchdog.cancel()
            thread.join(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_requests_end_tasks_are_cancelled_and_the_process_goes_on(number: signal.Signals) -> None:
    served = Served()
    answers: list[str] = []

    def script() -> None:
        served.get()
        asked = threading.Thread(target=lambda: answers.append(served.get(1.0).text))
        asked.start()
        while len(served.left) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)
        asked.join(60)

    served.run(script)
    assert answers == ["answer"]
    assert served.seen == ["answer", "answer", "lifespan", "cancelled", "cancelled"]
    assert served.beats >= 1
    assert served.worker.config.timeout_graceful_shutdown == 30 - 2 - 2 - 5 - 2


def test_a_fast_stop_cancels_requests_in_flight() -> None:
    served = Served()
    answers: list[int] = []

    def script() -> None:
        served.get()
        asked = threading.Thread(target=lambda: answers.append(served.get(60.0).status_code))
        asked.start()
        while len(served.left) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGQUIT)
        asked.join(60)

    began = time.monotonic()
    served.run(script)
    assert answers == [503]
    assert time.monotonic() - began < 15
    assert "lifespan" in served.seen


def test_a_signal_before_serving_ends_the_worker_at_once() -> None:
    served = Served()
    served.worker.init_signals()
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 0
    served.listener.close()


def test_a_worker_that_gunicorn_aborts_calls_worker_abort_and_ends() -> None:
    served = Served()
    aborted: list[Any] = []
    served.config.set("worker_abort", aborted.append)
    served.worker.init_signals()
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGABRT)
    assert aborted == [served.worker]
    served.listener.close()


def test_wrong_variables_end_the_worker_with_a_boot_error(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served()
    critical: list[str] = []
    served.worker.log.critical = lambda text, error: critical.append(text % error)
    monkeypatch.setattr(
        "lightrag_resilience.shutdown.guards",
        lambda: Guards(
            settings=load_settings(
                {"RESILIENCE_SHUTDOWN_TIMEOUT": "1", "RESILIENCE_SHUTDOWN_CANCEL_GRACE": "9"}
            )
        ),
    )
    with pytest.raises(SystemExit) as caught:
        served.worker.run()
    assert caught.value.code == 3
    assert "no room" in critical[0]
    served.listener.close()


def test_a_thread_that_never_ends_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = Served()
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    logged: list[Any] = []
    served.worker.log.error = lambda text, names: logged.append(names)
    goes_on = threading.Event()
    stuck = threading.Thread(target=goes_on.wait, name="stuck")
    stuck.start()
    served.worker.stops_at = time.monotonic() - 60
    served.worker._start_watchdog()
    assert served.worker.watchdog.daemon
    served.worker.watchdog.join(30)
    goes_on.set()
    stuck.join()
    assert left == [1]
    assert "stuck" in logged[0]
    served.listener.close()
