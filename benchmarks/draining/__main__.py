"""A rolling restart under load: how many requests fail while Gunicorn replaces its workers.

`python -m benchmarks.draining [--smoke] [--requests N] [--json FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

WORKERS = {
    "uvicorn": "lightrag_resilience.integrations.gunicorn.DrainingWorker",
    "asgi": "asgi",
}
CONFIG = """
from lightrag_resilience.integrations.gunicorn import *

control_socket_disable = True
worker_class = {worker!r}
workers = {count}
graceful_timeout = 15
keepalive = 10  # an idle connection is closed at a moment that no client can know
loglevel = "error"
"""
CLIENTS = 32
AT_ONCE = 2  # workers
EVERY = 3.0  # seconds between two restarts


@dataclass
class Figures:
    """What came of one run."""

    requests: int = 0
    restarts: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    processes: set[str] = field(default_factory=set)
    failed: Counter[str] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draining", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="for each row")
    parser.add_argument("--smoke", dest="requests", action="store_const", const=400)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    rows = {}
    for worker in WORKERS:
        for kept in (False, True):
            name = f"{worker}, {'connections kept' if kept else 'a connection each'}"
            rows[name] = asyncio.run(measure(worker, options.requests, kept=kept))
    show(rows)
    if options.json:
        plain = {name: {**vars(row), "processes": len(row.processes)} for name, row in rows.items()}
        options.json.write_text(json.dumps(plain, indent=2))
    sys.exit(any(row.failed for row in rows.values()))


def show(rows: dict[str, Figures]) -> None:
    table = Table("", "requests", "restarts", "processes", "seconds", "slowest", "failed: goal 0")
    for name, row in rows.items():
        failed = ", ".join(f"{count} {kind}" for kind, count in row.failed.items()) or "0"
        numbers = [row.requests, row.restarts, len(row.processes)]
        times = [f"{row.seconds:.1f} s", f"{row.slowest * 1000:.0f} ms"]
        table.add_row(name, *map(str, numbers), *times, failed)
    Console().print(table)


async def measure(worker: str, requests: int, *, kept: bool) -> Figures:
    """Ask for so much with many clients, while all workers are replaced again and again."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        config = Path(folder, "gunicorn.conf.py")
        config.write_text(CONFIG.format(worker=WORKERS[worker], count=AT_ONCE))  # noqa: ASYNC240 - nothing else runs
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        port = listener.getsockname()[1]
        master = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gunicorn", "-c", str(config)),
            *("-b", f"fd://{listener.fileno()}", "benchmarks.draining.app:app"),
            pass_fds=[listener.fileno()],
            env={**os.environ, "RESILIENCE_SHUTDOWN_JOURNAL": str(Path(folder, "journal"))},
        )
        listener.close()
        try:
            return await load(master, port, requests, kept=kept)
        finally:
            master.send_signal(signal.SIGTERM)
            await master.wait()


async def load(
    master: asyncio.subprocess.Process, port: int, requests: int, *, kept: bool
) -> Figures:
    figures = Figures()
    left = until_restarted(requests, figures)
    limits = httpx.Limits(max_keepalive_connections=CLIENTS if kept else 0)
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=60) as client:
        await client.get("/")  # which waits until a worker serves
        began = time.monotonic()
        restarting = asyncio.create_task(restart(master, figures))
        await asyncio.gather(*(ask(client, left, figures) for _ in range(CLIENTS)))
        restarting.cancel()
        figures.seconds = time.monotonic() - began
    return figures


def until_restarted(requests: int, figures: Figures) -> Iterator[int]:
    """So many requests, and more until a new process has answered."""
    asked = 0
    while asked < requests or len(figures.processes) <= AT_ONCE:
        yield asked
        asked += 1


async def restart(master: asyncio.subprocess.Process, figures: Figures) -> None:
    while True:
        master.send_signal(signal.SIGHUP)
        figures.restarts += 1
        await asyncio.sleep(EVERY)


async def ask(client: httpx.AsyncClient, left: Iterator[int], figures: Figures) -> None:
    for _ in left:
        began = time.monotonic()
        try:
            answer = await client.get("/")
        except httpx.TransportError as error:
            figures.failed[type(error).__name__] += 1
        else:
            figures.processes.add(answer.text)
            if answer.status_code != httpx.codes.OK:
                figures.failed[str(answer.status_code)] += 1
        figures.requests += 1
        figures.slowest = max(figures.slowest, time.monotonic() - began)


if __name__ == "__main__":
    main()
