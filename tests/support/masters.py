"""A real Gunicorn with two workers, and what became of the work that it was given."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from lightrag_resilience.draining.journal import AbandonedWork, Journal

from .ports import free_port

TESTS = Path(__file__).parents[1]
OURS = "lightrag_resilience.integrations.gunicorn.DrainingWorker"
WORKERS = {"uvicorn": OURS, "asgi": "asgi"}
PATIENCE = 60.0  # seconds after which what should happen does not; long, for machines under load

CONFIG = """
from lightrag_resilience.integrations.gunicorn import *
from lightrag_resilience.integrations import gunicorn as resilience
from support.drained_app import mark

control_socket_disable = True
worker_class = {worker!r}
workers = 2
loglevel = "info"
{more}

def worker_exit(server, worker):
    resilience.worker_exit(server, worker)
    mark("exit", "worker")

def worker_abort(worker):
    mark("abort", "worker")
"""


class Master:
    """One Gunicorn and all that it did. Other servers say what their command is.

    Args:
        folder: Where its files go.
        worker: ``uvicorn`` or ``asgi``.
        budget: Seconds of a drain: all, to cancel, to close.
        settings: Gunicorn's.
    """

    workers = 2
    binds_itself = False
    """Whether it takes no socket that listens already."""

    def __init__(
        self,
        folder: Path,
        worker: str,
        *,
        budget: tuple[float, float, float] = (40.0, 2.0, 2.0),
        **settings: float,
    ) -> None:
        folder.mkdir(parents=True)
        self.marks, self.journal = folder / "marks", Journal(folder / "journal")
        self.log, self.config = folder / "log", folder / "gunicorn.conf.py"
        self.marks.touch()
        more = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
        self.config.write_text(CONFIG.format(worker=WORKERS[worker], more=more))
        self.budget = budget
        self.process: asyncio.subprocess.Process
        self.seconds = 0.0
        """How long it took to end."""

    async def start(self) -> None:
        """Start it, and wait until all workers serve."""
        with contextlib.ExitStack() as stack:
            listener = None
            if self.binds_itself:
                self.port = free_port()
            else:
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
                self.port = int(listener.getsockname()[1])
            names = ("TIMEOUT", "CANCEL_GRACE", "CLOSE_TIMEOUT")
            times = zip(names, self.budget, strict=True)
            variables = {
                **os.environ,
                **{f"RESILIENCE_SHUTDOWN_{name}": str(value) for name, value in times},
                "RESILIENCE_SHUTDOWN_JOURNAL": str(self.journal.path),
                "MARKS": str(self.marks),
                "PYTHONPATH": str(TESTS),
            }
            descriptors = [listener.fileno()] if listener else []
            words = self.words(listener.fileno() if listener else -1, self.port)
            with self.log.open("wb") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, *words, "support.drained_app:app"),
                    env=variables,
                    pass_fds=descriptors,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        self.http = self.client()
        await self.until(lambda: len(self.marked("lifespan", "startup")) >= self.workers)
        if self.binds_itself:
            await self.until(self.listens)  # it may listen only after the application's start

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def words(self, descriptor: int, port: int) -> list[str]:
        """The command, but for the application."""
        del port
        return ["-m", "gunicorn", "-c", str(self.config), "-b", f"fd://{descriptor}"]

    def client(self, *, keeps: int = 0) -> httpx.AsyncClient:
        """A client that keeps so many connections open."""
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            timeout=PATIENCE,
            limits=httpx.Limits(max_keepalive_connections=keeps),
        )

    async def begin(self, kind: str, seconds: float, count: int = 1, **to: Any) -> list[Any]:
        """Begin work, and wait until it runs; returns the tasks of the requests."""
        http = to.get("http", self.http)
        before = len(self.marked("begun"))
        keys = [f"{kind}-{before + number}" for number in range(count)]
        tasks = [asyncio.create_task(http.get(f"/{key}?{kind}={seconds}")) for key in keys]

        def have_begun() -> bool:
            for task in tasks:
                if task.done():
                    task.result()  # an error says more than that its work never began
            return set(keys) <= set(self.begun)

        await self.until(have_begun)
        return tasks

    async def until(self, happens: Callable[[], object]) -> None:
        """Wait for something, within bounds."""
        ends = time.monotonic() + PATIENCE
        while not happens():
            assert self.process.returncode is None, self.log.read_text()
            assert time.monotonic() < ends, f"{self.marks.read_text()}\n{self.log.read_text()}"
            await asyncio.sleep(0.02)

    async def stop(self, *signals: signal.Signals) -> None:
        """Send it signals, the next one 0.3 s later, and wait for its end."""
        began = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            if number is not signals[-1]:
                await asyncio.sleep(0.3)
        await self.end()
        self.seconds = time.monotonic() - began

    async def end(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.process.wait()

    # ------------------------------------------------------------------ what became of the work

    def marked(self, word: str, key: str | None = None) -> list[tuple[str, int]]:
        """The keys that were marked by a word, with the process that did."""
        lines = [line.split() for line in self.marks.read_text().splitlines()]
        return [
            (line[1], int(line[2])) for line in lines if line[0] == word and key in {None, line[1]}
        ]

    @property
    def begun(self) -> list[str]:
        return [key for key, _ in self.marked("begun")]

    @property
    def done(self) -> list[str]:
        return [key for key, _ in self.marked("done")]

    @property
    def pids(self) -> list[int]:
        """Of all workers that ever served."""
        return [pid for _, pid in self.marked("lifespan", "startup")]

    def records(self) -> dict[str, AbandonedWork]:
        """The journal, by the keys of the work."""
        return {record.name.rpartition("/")[2]: record for record in self.journal.read()}

    def lost(self) -> set[str]:
        """Work that neither ended nor is in the journal."""
        return set(self.begun) - set(self.done) - set(self.records())


@contextlib.asynccontextmanager
async def running(
    folder: Path, worker: str, *, of: type[Master] = Master, **settings: Any
) -> AsyncIterator[Master]:
    master = of(folder, worker, **settings)
    await master.start()
    try:
        yield master
    finally:
        await master.http.aclose()
        if master.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(master.process.pid, signal.SIGKILL)  # a session of its own
        await master.process.wait()


async def results(tasks: Iterable[Any]) -> list[Any]:
    """Answers' status codes, or the class of what went wrong."""
    found = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        each.status_code if isinstance(each, httpx.Response) else type(each).__name__
        for each in found
    ]
