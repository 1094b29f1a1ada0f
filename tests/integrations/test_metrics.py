"""``/metrics``: of one process, and of all workers of a real Gunicorn together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry

from lightrag_resilience import Guards
from lightrag_resilience.config.process_environment import read_process_environment, share_metrics
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.errors import SettingsError
from lightrag_resilience.integrations.metrics import Metrics
from lightrag_resilience.telemetry.prometheus import observe
from support.ports import free_port

WITHIN = 60.0  # seconds, on a busy machine
ASKED_FOR = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.1"
)
"""As Prometheus 3 asks."""
COUNTED = "lightrag_resilience_attempt_duration_seconds_count"
APPLICATION = '''
"""Tells which worker made a guarded call."""

import os

from lightrag_resilience import guard
from lightrag_resilience.integrations.metrics import Metrics


async def answer() -> bytes:
    return str(os.getpid()).encode()


async def plain(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = await guard("llm.openai").call(answer)
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = Metrics(plain)
'''


async def answer() -> str:
    return "an answer"


@pytest.fixture
def guards() -> Iterator[Guards]:
    made = Guards(settings=load_settings({}))
    yield made
    made.close()


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")


@pytest.mark.anyio
async def test_one_process_serves_its_metrics_and_passes_other_paths_on(guards: Guards) -> None:
    app = Metrics(hello, registry=guards, collected=CollectorRegistry())
    async with client_of(app) as http:
        assert (await http.get("/")).text == "hello"
        await guards.get("llm.openai").call(answer)
        text = await http.get("/metrics")
        assert f'{COUNTED}{{dependency="llm.openai",outcome="success"}} 1.0' in text.text
        assert text.headers["content-type"].startswith("text/plain")
        modern = await http.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert modern.headers["content-type"].startswith("application/openmetrics-text")
        assert modern.text.endswith("# EOF\n")
        head = await http.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert (await http.post("/metrics")).status_code == 405
    app.close()
    app.close()


@pytest.mark.parametrize(
    "accepted",
    [
        "application/openmetrics-text;version=abc",
        "application/openmetrics-text;version=1..0",
        "application/openmetrics-text;version=" + "9" * 5000,
        "text/plain;version=x;q=\xe9",
        "application/openmetrics-text;version=1.0.0;escaping=\xff",
        ";=;,=",
    ],
)
@pytest.mark.anyio
async def test_every_accept_header_gets_an_answer(guards: Guards, accepted: str) -> None:
    app: Any = Metrics(hello, registry=guards, collected=CollectorRegistry())
    transport = httpx.ASGITransport(app=app)
    headers = [(b"accept", accepted.encode("latin-1"))]
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        answered = await http.get("/metrics", headers=headers)
    app.close()
    assert answered.status_code == 200
    assert "lightrag_resilience" in answered.text


@pytest.mark.anyio
async def test_the_lifespans_end_stops_observing(guards: Guards) -> None:
    collected = CollectorRegistry()
    app = Metrics(hello, registry=guards, collected=collected)

    async def nothing() -> Any:
        return {}

    await app({"type": "lifespan"}, nothing, nothing)  # type: ignore[arg-type]
    observe(guards, registry=collected).close()  # the names are free again


@pytest.mark.anyio
async def test_an_application_that_observes_itself_keeps_its_metrics(guards: Guards) -> None:
    collected = CollectorRegistry()
    own = observe(guards, registry=collected)
    app = Metrics(hello, registry=guards, collected=collected)
    async with client_of(app) as http:
        await guards.get("llm.openai").call(answer)
        assert "llm.openai" in (await http.get("/metrics")).text
    app.close()
    own.close()


# ---------------------------------------------------------------------- several processes


@contextlib.contextmanager
def gunicorn(folder: Path, metrics: Path) -> Iterator[httpx.Client]:
    (folder / "counted_application.py").write_text(APPLICATION)
    address = f"127.0.0.1:{free_port()}"
    log = folder / "output.txt"
    words = "-m gunicorn --workers 2 --preload --worker-class uvicorn_worker.UvicornWorker"
    command = [sys.executable, *words.split(), "--bind", address, "counted_application:app"]
    theirs = {name: value for name, value in os.environ.items() if "RESILIENCE_" not in name}
    theirs |= {"PROMETHEUS_MULTIPROC_DIR": str(metrics), "PYTHONPATH": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, cwd=folder, env=theirs, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=WITHIN) as http:
            deadline = time.monotonic() + WITHIN
            while True:
                with contextlib.suppress(httpx.TransportError):
                    http.get("/metrics")
                    break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield http
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def counted(http: httpx.Client) -> float:
    text = http.get("/metrics", headers={"accept": ASKED_FOR}).text
    assert text.endswith("# EOF\n")
    found = re.findall(rf"^{COUNTED}{{.*}} (.*)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_any_gunicorn_worker_answers_for_all(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    with gunicorn(tmp_path, metrics) as http:
        seen: dict[str, int] = {}
        deadline = time.monotonic() + WITHIN
        while len(seen) < 2:  # the kernel chooses the worker
            assert time.monotonic() < deadline, seen
            pid = http.get("/").text
            seen[pid] = seen.get(pid, 0) + 1
        while counted(http) < sum(seen.values()):  # workers write down theirs once a second
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(4):
            assert counted(http) == sum(seen.values())


# ---------------------------------------------------------------------- LightRAG's own server


@pytest.fixture
def show_metrics() -> Any:
    return pytest.importorskip(
        "lightrag_resilience.integrations.lightrag.serving.metrics_route"
    ).show_metrics


@pytest.mark.anyio
async def test_the_server_modules_application_serves_metrics(show_metrics: Any) -> None:
    starlette = pytest.importorskip("starlette.applications")
    server = ModuleType("server")
    server.create_app = starlette.Starlette  # type: ignore[attr-defined]
    show_metrics(server, is_shared=False)
    app = server.create_app()
    sent: list[Any] = []
    steps = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> Any:
        step = next(steps)
        if step == "lifespan.shutdown":
            async with client_of(app) as http:
                assert "lightrag_resilience_" in (await http.get("/metrics")).text
                assert (await http.get("/other")).status_code == 404
        return {"type": step}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "asgi": {}, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_without_prometheus_client_the_server_does_not_start(
    show_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightrag_resilience.integrations.metrics", None)
    with pytest.raises(SettingsError, match="RESILIENCE_METRICS is true"):
        show_metrics(ModuleType("server"), is_shared=False)


# ---------------------------------------------------------------------- the folder


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "a value to come back to")
    return monkeypatch


def test_the_configured_folder_is_made_and_emptied(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "some" / "folder"
    environment.setenv("PROMETHEUS_MULTIPROC_DIR", str(named))
    assert share_metrics() == named
    (named / "counter_1.db").write_bytes(b"old")
    (named / "notes.txt").write_bytes(b"not ours")
    share_metrics()
    assert [path.name for path in named.iterdir()] == ["notes.txt"]


def test_a_temporary_folder_is_removed_with_the_process() -> None:
    module = "lightrag_resilience.config.process_environment"
    code = f"from {module} import share_metrics; print(share_metrics(), flush=True)"
    line = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=WITHIN)  # noqa: S603
    assert "lightrag-resilience-metrics-" in line
    assert not Path(line.strip()).exists()


@pytest.mark.anyio
async def test_metrics_of_the_configured_folder_are_served(
    guards: Guards, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    app = Metrics(hello, registry=guards, collected=CollectorRegistry())
    async with client_of(app) as http:
        assert (await http.get("/metrics")).text == ""  # no process has written to it
    app.close()


def test_a_temporary_folder_is_named_in_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("PROMETHEUS_MULTIPROC_DIR")
    folder = share_metrics()
    assert read_process_environment().multiprocess_folder == str(folder)
    assert folder.is_dir()
    folder.rmdir()
