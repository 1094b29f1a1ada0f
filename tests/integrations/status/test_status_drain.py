"""The status page of a real server that shuts down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.ports import free_port

pytest.importorskip("uvicorn")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

PATIENCE = 30.0  # seconds
APP = """
import asyncio, sys
import uvicorn
from lightrag_resilience import guard
from lightrag_resilience.integrations.asgi import DrainMiddleware
from lightrag_resilience.integrations.status import StatusPage

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await guard("llm").call(asyncio.sleep, 3)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answer"})

app = StatusPage(DrainMiddleware(application))
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


@contextlib.contextmanager
def served() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(APP), str(port)])  # noqa: S603
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/livez").status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.mark.anyio
async def test_a_viewer_sees_the_drain_and_does_not_prolong_it() -> None:
    with served() as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
            drains: list[Any] = []
            is_stopped = False
            request = asyncio.create_task(http.get("/query"))
            async with http.stream("GET", "/resilience/events") as stream:
                async for line in stream.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    data = json.loads(line.removeprefix("data: "))
                    rows = [row["in_flight"] for row in data["dependencies"]]
                    if rows == [{"calls": 1}] and not is_stopped:
                        process.send_signal(signal.SIGTERM)
                        is_stopped = True
                    if data["drain"]:
                        drains.append(data["drain"])
            ended = time.monotonic()
            assert (await request).text == "answer"
        assert drains[0]["phase"] == "draining"
        assert drains[0]["reason"] == "SIGTERM"
        assert drains[0]["in_flight"] == 1
        process.wait(PATIENCE)
        assert time.monotonic() - ended < PATIENCE / 2
