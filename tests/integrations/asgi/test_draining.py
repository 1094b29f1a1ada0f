"""DrainMiddleware behind a real server: uvicorn, stopped by real signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn")

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.integrations.asgi import DrainMiddleware
from lightrag_resilience.shutdown import Coordinator
from support.ports import free_port

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]

APP = """
import asyncio, json, sys
import uvicorn
from lightrag_resilience import guard
from lightrag_resilience.integrations.asgi import DrainMiddleware
from lightrag_resilience.shutdown import Coordinator

SEEN = open(sys.argv[2], "a", buffering=1)

async def slow(seconds):
    await asyncio.sleep(seconds)
    return "answer"

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                SEEN.write("closed\\n")
                await send({"type": "lifespan.shutdown.complete"})
                return
    seconds = float(scope["path"].strip("/") or 0)
    if scope["query_string"] == b"background":
        task = asyncio.create_task(background(seconds), name="background")
        app.coordinator.track(task)
        body = b"begun"
    else:
        await asyncio.sleep(seconds / 2)
        body = (await guard("llm").call(slow, seconds / 2)).encode()  # begun after the signal
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

async def background(seconds):
    await guard("llm").call(slow, seconds)
    SEEN.write("background\\n")

app = DrainMiddleware(
    application,
    ready_while_closed=["llm"],
    make_coordinator=lambda registry: Coordinator(
        registry=registry, timeout=float(sys.argv[3]), cancel_grace=0.3, close_timeout=0.3,
        journal=sys.argv[4],
    ),
)
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", timeout_graceful_shutdown=20)
"""


class Server:
    def __init__(self, folder: Path, timeout: float) -> None:
        port = free_port()
        self.seen, self.journal = folder / "seen", Journal(folder / "journal")
        words = [str(port), str(self.seen), str(timeout), str(self.journal.path)]
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", textwrap.dedent(APP), *words]
        )
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(path)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def end(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)

    def said(self) -> list[str]:
        return self.seen.read_text().split()


@contextlib.asynccontextmanager
async def served(folder: Path, *, timeout: float = 15.0) -> AsyncIterator[Server]:  # noqa: ASYNC109 - the server's
    server = Server(folder, timeout)
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await server.get("/livez")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        await server.http.aclose()


async def test_requests_and_background_work_end_before_the_process(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        assert (await server.get("/readyz")).json() == {"status": "ready"}
        request = asyncio.create_task(server.get("/2"))
        assert (await server.get("/3?background")).text == "begun"
        await asyncio.sleep(0.5)  # both have arrived
        server.stop()
        assert (await request).text == "answer"
        assert await server.end() in {0, -signal.SIGTERM}
        assert server.said() == ["background", "closed"]
        assert list(server.journal.read()) == []


async def test_work_that_does_not_end_in_time_is_in_the_journal(tmp_path: Path) -> None:
    async with served(tmp_path, timeout=2.0) as server:
        assert (await server.get("/60?background")).text == "begun"
        began = time.monotonic()
        server.stop()
        await server.end()
        assert time.monotonic() - began < 20
        assert server.said() == ["closed"]
        assert [(each.name, each.signal) for each in server.journal.read()] == [
            ("background", "SIGTERM")
        ]


# ---------------------------------------------------------------------- without a server


async def ask(app: Any, path: str) -> tuple[int, dict[str, str], Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "GET", "path": path}, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(sent[1]["body"])


async def test_a_draining_process_is_not_ready_and_rejects_requests() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    guards = Guards(settings=load_settings({}))
    app = DrainMiddleware(application, registry=guards, last_requests=0, ready_while_closed=["llm"])
    assert (await ask(app, "/readyz"))[0] == 200
    guards.get("llm").breaker.open()
    status, headers, body = await ask(app, "/readyz")
    assert (status, body) == (503, {"status": "not ready", "unavailable": ["llm"]})
    assert int(headers["retry-after"]) > 0
    guards.get("llm").breaker.half_open()
    assert (await ask(app, "/readyz"))[0] == 503
    guards.get("llm").breaker.close()
    async with Coordinator(registry=guards, handle_signals=False) as coordinator:
        app.coordinator = coordinator
        await coordinator.drain()
        assert (await ask(app, "/readyz"))[2] == {"status": "draining"}
        assert (await ask(app, "/livez"))[0] == 200
        status, headers, body = await ask(app, "/query")
        assert status == 503
        assert body == {
            "detail": "This server is about to stop or restart. Try again in 1 s.",
            "cause": "This process shuts down",
            "dependency": None,
            "retry_after": 1,
        }
        assert headers["connection"] == "close"


async def test_the_applications_shutdown_comes_after_work_in_flight() -> None:
    guards = Guards(settings=load_settings({}))
    order: list[str] = []
    begun, stop = asyncio.Event(), asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(0)
            await guards.get("llm").call(asyncio.sleep, 0.3)
            order.append("request")
            return
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        order.append("end")
        await send({"type": "lifespan.shutdown.complete"})

    async def receive() -> Any:
        if not begun.is_set():
            return {"type": "lifespan.startup"}
        await stop.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            begun.set()

    app = DrainMiddleware(
        application,
        registry=guards,
        make_coordinator=lambda registry: Coordinator(registry=registry, handle_signals=False),
    )
    life = asyncio.create_task(app({"type": "lifespan"}, receive, send))
    await begun.wait()
    request = asyncio.create_task(app({"type": "http", "path": "/query"}, receive, send))
    await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(life, request)
    assert order == ["request", "end"]
    assert not guards.gate.is_closed


async def test_clients_are_closed_only_after_the_last_request_can_arrive() -> None:
    guards = Guards(settings=load_settings({}))
    begun, stop = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            order.append("request")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async def receive() -> Any:
        if not begun.is_set():
            return {"type": "lifespan.startup"}
        await stop.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            begun.set()

    app = DrainMiddleware(
        application,
        registry=guards,
        last_requests=20.0,
        make_coordinator=lambda registry: Coordinator(registry=registry, handle_signals=False),
    )
    life = asyncio.create_task(app({"type": "lifespan"}, receive, send))
    await begun.wait()
    assert app.coordinator is not None
    app.coordinator.on_close(lambda: order.append("closed"))
    app.coordinator.begin("SIGTERM")  # nothing is in flight
    await asyncio.sleep(0.3)
    assert (await ask(app, "/late"))[0] == 200
    stop.set()
    await life
    assert order == ["request", "closed"]
