"""LightRAG's own server, protected by `serve`: real HTTP on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("lightrag")
pytest.importorskip("fastapi", reason="LightRAG's server comes with lightrag-hku[api]")
pytest.importorskip("jwt", reason="LightRAG's server comes with lightrag-hku[api]")

from lightrag_resilience.testing import Fault, Simulator

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

LAUNCHER = Path(__file__).resolve().parents[1] / "support" / "lightrag_server.py"
STARTS_WITHIN = 120.0  # seconds, on a busy machine
TEXT = "Ada founded Alderwick beside the river."


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Served:
    """A server, the provider behind it, and a client of it."""

    http: httpx.AsyncClient
    provider: Simulator
    process: subprocess.Popen[bytes]
    log: Path

    async def ingest(self) -> None:
        body = {"text": TEXT, "file_source": "ada.txt"}
        response = await self.http.post("/documents/text", json=body)
        response.raise_for_status()
        async with asyncio.timeout(STARTS_WITHIN):
            while not await self.processed():  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.1)

    async def processed(self) -> int:
        response = await self.http.get("/documents/status_counts")
        return int(response.json()["status_counts"]["processed"])

    async def ask(self, question: str, path: str = "/query", **more: Any) -> httpx.Response:
        return await self.http.post(path, json={"query": question, "mode": "mix", **more})


@contextlib.asynccontextmanager
async def served(folder: Path, *options: str, **variables: str) -> AsyncIterator[Served]:
    async with Simulator(seed=1) as provider:
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
        }
        log = folder / "output.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own interpreter
                [sys.executable, str(LAUNCHER), *options],
                cwd=folder,
                env=theirs | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                await until_it_answers(http, process, log)
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("options", [(), ("--gunicorn", "--workers", "2")], ids=["one", "gunicorn"])
async def test_an_outage_is_told_with_the_time_to_come_back(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    async with served(tmp_path, *options, RESILIENCE_STATUS="true") as server:
        await server.ingest()
        answer = await server.ask("Who founded Alderwick?")
        assert answer.status_code == 200
        assert "Ada founded Alderwick" in answer.json()["response"]

        server.provider.set_faults([Fault.status(500)])
        for number in range(6):  # each worker's own breaker opens
            failed = await server.ask(f"Who founded town {number}?")
            assert failed.status_code == 503
        before = len(server.provider.calls)
        many = await asyncio.gather(*(server.ask(f"Who rules town {n}?") for n in range(20)))
        assert {answer.status_code for answer in many} == {503}
        assert len(server.provider.calls) - before <= 10
        for path in ("/query", "/query/stream", "/query/data"):
            refused = await server.ask("Who?", path)
            body = refused.json()
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) == body["retry_after"] > 0
            assert body["dependency"] == "llm.openai"
            assert "Circuit 'llm.openai' is open" in body["detail"]

        shown = await server.http.get("/resilience/data")
        assert shown.json()["can_act"] is False
        if not options:
            assert shown.json()["headline"]["sentence"][0] == "llm.openai has been down"

        # LightRAG's own errors stay its own.
        assert (await server.http.post("/query", json={"query": ""})).status_code == 422
        assert (await server.http.get("/nowhere")).status_code == 404


async def test_a_stream_that_breaks_off_ends_with_an_error_line(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        await server.ingest()
        server.provider.set_faults([Fault.truncate(4, path="chat/completions")])
        answer = await server.ask(TEXT, "/query/stream", mode="naive", stream=True)
        lines = answer.text.strip().split("\n")
        assert answer.status_code == 200
        assert any('"response"' in line for line in lines)
        assert '"error"' in lines[-1]
        assert "llm.openai" in lines[-1]


async def test_what_is_left_answers_where_the_operator_wants_it(tmp_path: Path) -> None:
    async with served(tmp_path, RESILIENCE_DEGRADE="true") as server:
        await server.ingest()
        server.provider.set_faults([Fault.status(500, path="chat/completions")])
        answer = await server.ask("Who founded Alderwick?")
        assert answer.status_code == 200
        assert answer.json()["response"].startswith("[No answer, but what was found")
        assert TEXT in answer.json()["response"]


async def test_a_wrong_variable_ends_it_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RESILIENCE_LLM__RETRY__ATTEMPTS=0\n")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "lightrag_resilience", "serve", "--port", "1"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STARTS_WITHIN,
        check=False,
    )
    assert done.returncode == 2
    assert "RESILIENCE_LLM__RETRY__ATTEMPTS is '0'" in done.stderr
    assert "Traceback" not in done.stderr
