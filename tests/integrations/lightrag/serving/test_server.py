"""LightRAG's own server, protected by `serve`: real HTTP on both sides."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightrag")
pytest.importorskip("fastapi", reason="LightRAG's server comes with lightrag-hku[api]")
pytest.importorskip("jwt", reason="LightRAG's server comes with lightrag-hku[api]")

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import server as server_module
from lightrag_resilience.testing import Fault
from support.served import STARTS_WITHIN, TEXT, Served, served

PROTECTED = "is protected by lightrag_resilience"
pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]


def test_the_start_logs_whether_breakers_are_shared_yet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lightrag_resilience")
    own = Guards(settings=load_settings({"RESILIENCE_REDIS_URL": "redis://:secret@127.0.0.1:1"}))
    own.get("llm.openai")
    monkeypatch.setattr(server_module, "guards", lambda: own)
    assert own.link is not None
    for own.link.is_up in (True, False):
        server_module._log_start()
    own.close()
    shared, unavailable = (text for text in caplog.messages if PROTECTED in text)
    assert "; breakers are shared through Redis at 127.0.0.1:1; " in shared
    assert (
        "; breakers are shared through Redis at 127.0.0.1:1 as soon as it can be used; "
        in unavailable
    )


def test_the_start_names_variables_of_dependencies_that_are_not_called(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sections = ("DEFAULT", "RERANK", "LLM_OPENAI", "LLM_OPENIA", "LLM_OPENAI_GPU2", "STORAGE_PG")
    own = Guards(
        settings=load_settings({f"RESILIENCE_{it}__RETRY__ATTEMPTS": "2" for it in sections})
    )
    own.get("llm.openai.gpu1")
    own.get("storage.pg")
    monkeypatch.setattr(server_module, "guards", lambda: own)
    server_module._log_start()
    (text,) = (text for text in caplog.messages if "have no effect" in text)
    assert "with RESILIENCE_LLM_OPENAI_GPU2__ or RESILIENCE_LLM_OPENIA__ have" in text


DOWN = {"degraded": True, "dependencies": {"llm.openai": "down"}}


async def readiness_and_health(server: Served) -> tuple[int, object]:
    """The status of ``/readyz``, and what ``/health`` says next to what LightRAG says."""
    health = (await server.http.get("/health")).json()
    assert health["status"] == "healthy"
    return (await server.http.get("/readyz")).status_code, health["resilience"]


@pytest.mark.parametrize("options", [(), ("--gunicorn", "--workers", "2")], ids=["one", "gunicorn"])
async def test_an_outage_is_answered_with_retry_after(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    async with served(
        tmp_path,
        *options,
        RESILIENCE_STATUS="true",
        RESILIENCE_METRICS="true",
        RESILIENCE_READY_WHILE_CLOSED="llm.openai, llm.mistaken",
    ) as server:
        await server.ingest()
        answer = await server.ask("Who founded Alderwick?")
        assert answer.status_code == 200
        assert "Ada founded Alderwick" in answer.json()["response"]
        before_it = len(server.log.read_text())
        starts = [line for line in server.log.read_text().splitlines() if PROTECTED in line]
        assert len(starts) == (2 if options else 1)
        assert server.log.read_text().count("Breakers are this process's own") == len(starts)
        for fact in (
            "embedding.openai, llm.openai, storage.",
            "status page: /resilience;",
            "/metrics",
        ):
            assert fact in starts[0]
        assert starts[0].startswith("20")  # the year
        assert server.log.read_text().count("names 'llm.mistaken', which") == len(starts)
        assert await readiness_and_health(server) == (200, {"degraded": False, "dependencies": {}})

        server.provider.set_faults([Fault.status(500)])
        for number in range(6):  # each worker's own breaker opens
            failed = await server.ask(f"Who founded town {number}?")
            assert failed.status_code == 503
            if not number:
                first = failed.json()["request_id"]
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
            assert body["request_id"] == refused.headers["x-request-id"]
            assert body["detail"].startswith("The language model is not available. Try again in ")
            assert "Circuit 'llm.openai' is open" in body["cause"]

        logged = server.log.read_text()[before_it:]
        assert "Traceback" not in logged
        assert "Returning HTTP 500" not in logged
        assert f"POST /query from 127.0.0.1 got 503 (request {first}): " in logged
        assert len(logged.splitlines()) <= 29  # one for each rejected query, 3 for each worker
        in_file = (tmp_path / "lightrag.log").read_text()
        assert PROTECTED in in_file
        assert first in in_file

        shown = await server.http.get("/resilience/data")
        assert shown.json()["can_act"] is False
        assert await readiness_and_health(server) == (503, DOWN)
        if not options:
            assert shown.json()["headline"]["sentence"][0] == "llm.openai has been down"
        metrics = (await server.http.get("/metrics")).text
        open_circuit = r'rejections_total{dependency="llm.openai",reason="CircuitOpenError"} (\d+)'
        assert sum(map(int, re.findall(open_circuit, metrics))) >= 20
        no_answer = r'query_duration_seconds_count{outcome="failed"} (\d+)'
        assert sum(map(int, re.findall(no_answer, metrics))) >= 26

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
        assert (await server.http.get("/metrics")).status_code == 404  # metrics are off
        last = json.loads(lines[-1])
        assert last["error"].startswith("The answer was cut off by the language model.")
        assert "llm.openai" in last["cause"]
        assert last["request_id"] == answer.headers["x-request-id"]
        assert f"got 200 (request {last['request_id']}): " in server.log.read_text()


async def test_an_outage_degrades_answers_if_degradation_is_on(tmp_path: Path) -> None:
    async with served(tmp_path, RESILIENCE_DEGRADE="true") as server:
        await server.ingest()
        server.provider.set_faults([Fault.status(500, path="chat/completions")])
        answer = await server.ask("Who founded Alderwick?")
        assert answer.status_code == 200
        assert answer.json()["response"].startswith("[No answer, but what was found")
        assert TEXT in answer.json()["response"]


async def test_a_wrong_variable_ends_the_server_before_it_starts(tmp_path: Path) -> None:
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
