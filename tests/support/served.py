"""LightRAG's own server in a process of its own, with a simulated provider behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lightrag_resilience.testing import Simulator

from .ports import free_port

LAUNCHER = Path(__file__).resolve().parent / "lightrag_server.py"
STARTS_WITHIN = 120.0  # seconds, on a busy machine
TEXT = "Ada founded Alderwick beside the river."


@dataclass
class Served:
    """A server, the provider behind it, and a client of it."""

    http: httpx.AsyncClient
    provider: Simulator
    process: subprocess.Popen[bytes]
    log: Path

    async def ingest(self, text: str = TEXT, source: str = "ada.txt") -> None:
        body = {"text": text, "file_source": source}
        response = await self.http.post("/documents/text", json=body)
        response.raise_for_status()
        async with asyncio.timeout(STARTS_WITHIN):
            while not await self.processed():  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.1)

    async def statuses(self) -> dict[str, int]:
        response = await self.http.get("/documents/status_counts")
        counts: dict[str, int] = response.json()["status_counts"]
        return {name: count for name, count in counts.items() if count and name != "all"}

    async def processed(self) -> int:
        return (await self.statuses()).get("processed", 0)

    async def ask(self, question: str, path: str = "/query", **more: Any) -> httpx.Response:
        return await self.http.post(path, json={"query": question, "mode": "mix", **more})

    def killed(self) -> None:
        """Kill its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    async def ended_by(self, number: signal.Signals) -> float:
        """Send its process a signal; seconds until it ends."""
        began = asyncio.get_running_loop().time()
        self.process.send_signal(number)
        await asyncio.to_thread(self.process.wait, STARTS_WITHIN)
        return asyncio.get_running_loop().time() - began


@contextlib.asynccontextmanager
async def served(folder: Path, *options: str, **variables: str) -> AsyncIterator[Served]:
    """A server with its own simulated provider."""
    async with (
        Simulator(seed=1) as provider,
        serving(folder, provider, *options, **variables) as server,
    ):
        yield server


@contextlib.asynccontextmanager
async def serving(
    folder: Path, provider: Simulator, *options: str, **variables: str
) -> AsyncIterator[Served]:
    """A server that answers."""
    async with launched(folder, provider, *options, **variables) as server:
        await until_it_answers(server.http, server.process, server.log)
        yield server


@contextlib.asynccontextmanager
async def launched(
    folder: Path, provider: Simulator, *options: str, **variables: str
) -> AsyncIterator[Served]:
    """A server that was just started, in its own process group."""
    port = free_port()
    theirs = {key: value for key, value in os.environ.items() if "RESILIENCE_" not in key}
    theirs |= {
        "LLM_BINDING": "openai",
        "LLM_BINDING_HOST": provider.base_url,
        "LLM_BINDING_API_KEY": "none",
        "LLM_MODEL": "simulated",
        "EMBEDDING_BINDING": "openai",
        "EMBEDDING_BINDING_HOST": provider.base_url,
        "EMBEDDING_BINDING_API_KEY": "none",
        "EMBEDDING_MODEL": "simulated",
        "EMBEDDING_DIM": "64",
        "EMBEDDING_SEND_DIM": "true",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKING_DIR": str(folder / "data"),
        "INPUT_DIR": str(folder / "inputs"),
        "LOG_DIR": str(folder),
        "MAX_GLEANING": "0",
        "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.01",
        "RESILIENCE_DEFAULT__BREAKER__OPEN_FOR": "30",
        "RESILIENCE_QUERY__PATIENCE": "0",
    }
    log = folder / "output.txt"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own interpreter
            [sys.executable, str(LAUNCHER), *options],
            cwd=folder,
            env=theirs | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            yield Served(http, provider, process, log)
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def until_it_answers(
    http: httpx.AsyncClient, process: subprocess.Popen[bytes], log: Path
) -> None:
    async with asyncio.timeout(STARTS_WITHIN):
        while True:
            assert process.poll() is None, log.read_text()[-3000:]  # noqa: ASYNC240 - it is short
            with contextlib.suppress(httpx.TransportError):
                if (await http.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(0.2)
