"""The status page behind a real uvicorn, in a thread of this process, with guards to play with."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.status import StatusPage

TOKEN = "a-token-for-tests-alone"  # noqa: S105 - it protects nothing
STARTS_WITHIN = 30.0  # seconds


async def nothing_here(scope: Any, receive: Any, send: Any) -> None:
    """The application behind the page."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"the application"})


class StatusApp:
    """A page, its address, and what happens in its process."""

    def __init__(self, guards: Guards, token: str | None) -> None:
        self.guards = guards
        self._server = uvicorn.Server(
            uvicorn.Config(
                StatusPage(nothing_here, registry=guards, token=token),
                log_level="warning",
                timeout_graceful_shutdown=1,
            )
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/resilience"

    def _serve(self) -> None:
        asyncio.run(self._serve_on_a_loop())

    async def _serve_on_a_loop(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._socket])

    def start(self) -> None:
        self._thread.start()
        for _ in range(round(STARTS_WITHIN * 100)):
            if self._server.started:
                return
            self._thread.join(0.01)
            assert self._thread.is_alive()
        raise AssertionError("uvicorn did not start")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(STARTS_WITHIN)
        self._socket.close()
        self.guards.close()

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do something on the server's loop, as a request would."""
        assert self.loop is not None

        async def do() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(do(), self.loop).result(STARTS_WITHIN)

    def call(self, name: str, *, times: int = 1, fails: bool = False) -> None:
        """Make calls of a dependency."""

        async def dependency() -> str:
            if fails:
                raise ConnectionRefusedError("made up")
            return "fine"

        async def many() -> None:
            for _ in range(times):
                await asyncio.gather(self.guards.get(name).call(dependency), return_exceptions=True)

        self.run(many)


@contextmanager
def status_app(token: str | None = TOKEN, **variables: str) -> Iterator[StatusApp]:
    """A page; keywords are variables without their prefix."""
    environ = {"RESILIENCE_DEFAULT__RETRY__ATTEMPTS": "1"}
    environ |= {f"RESILIENCE_{name}": value for name, value in variables.items()}
    app = StatusApp(Guards(settings=load_settings(environ)), token)
    app.start()
    try:
        yield app
    finally:
        app.stop()
