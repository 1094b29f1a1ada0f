"""Metrics of several processes behind one scrape."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry

from lightrag_resilience import (
    Guards,
)
from lightrag_resilience.telemetry import prometheus
from lightrag_resilience.telemetry.prometheus import observe
from support.telemetry import NAME, answer

# ---------------------------------------------------------------------- several processes


@pytest.mark.anyio
async def test_a_thread_sets_the_gauges_in_multiprocess_mode(
    guards: Guards, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "_is_multiprocess", lambda: True)
    monkeypatch.setattr(prometheus, "_GAUGE_INTERVAL", 0.001)
    observation = observe(guards, registry=registry)
    await guards.get(NAME).call(answer)
    async with asyncio.timeout(20):
        while ("breaker_state", NAME) not in observation._children:  # noqa: ASYNC110 - a thread
            await asyncio.sleep(0.001)
    thread = observation._thread
    observation.close()
    assert thread is not None
    assert not thread.is_alive()


WORKER = """
import asyncio, sys
from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.telemetry.prometheus import observe

async def answer():
    return 1

async def main():
    guards = Guards(settings=load_settings({}))
    observation = observe(guards)
    for _ in range(int(sys.argv[1])):
        await guards.get("llm.openai").call(answer)
    if sys.argv[2] == "open":
        guards.get("llm.openai").breaker.open()
    observation.refresh_gauges()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    observation.close()

asyncio.run(main())
"""

SCRAPE = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_several_processes_are_scraped_as_one(tmp_path: Path) -> None:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    plans = [("3", "closed"), ("4", "open"), ("5", "closed")]
    workers = [
        subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", WORKER, *plan],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for plan in plans
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        command = [sys.executable, "-c", SCRAPE]
        scraped = subprocess.run(  # noqa: S603 - our own interpreter
            command, env=environ, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    finally:
        for worker in workers:
            worker.communicate("\n", timeout=60)
    start = 'lightrag_resilience_attempt_duration_seconds_count{dependency="llm.openai",'
    assert start + 'outcome="success"} 12.0' in scraped
    assert 'breaker_state{dependency="llm.openai"} 2.0' in scraped
    assert 'in_flight{dependency="llm.openai"} 0.0' in scraped
    assert [worker.returncode for worker in workers] == [0, 0, 0]


GUNICORN_APP = """
from lightrag_resilience import guard, guards
from lightrag_resilience.telemetry.prometheus import observe
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
import asyncio

observation = observe(guards())

async def answer():
    return 1

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        body = generate_latest(registry)
    else:
        asyncio.run(guard("llm.openai").call(answer))
        body = b"ok"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_gunicorns_workers_are_scraped_as_one(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "served.py").write_text(GUNICORN_APP)
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gunicorn", "-w", "3", "-b", "127.0.0.1:0", "served:app"]
    with log.open("w") as errors:
        server = subprocess.Popen(  # noqa: S603 - our own interpreter
            command,
            cwd=tmp_path,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
            stderr=errors,
        )
    try:
        with httpx.Client(base_url=address_in(log), timeout=30, trust_env=False) as client:
            for _ in range(20):
                client.get("/").raise_for_status()
            text = client.get("/metrics").text
    finally:
        server.terminate()
        server.wait(60)
    start = 'lightrag_resilience_attempt_duration_seconds_count{dependency="llm.openai",'
    assert start + 'outcome="success"} 20.0' in text


def address_in(log: Path) -> str:
    """Where Gunicorn says that it listens."""
    import re  # noqa: PLC0415
    import time  # noqa: PLC0415

    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := re.search(r"Listening at: (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())
