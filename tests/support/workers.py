"""Several worker processes on one Redis, controlled by commands."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightrag_resilience.testing.command_process import CommandedProcess, request_all

from . import worker_process

# Started anew, each would import for a third of a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["redis.asyncio", "lightrag_resilience.testing.command_process"])

SETTINGS = {
    "RESILIENCE_LLM__RETRY__ATTEMPTS": "1",
    "RESILIENCE_LLM__BREAKER__CONSECUTIVE_FAILURES": "5",
    "RESILIENCE_LLM__BREAKER__FAILURE_RATE": "0.5",
    "RESILIENCE_LLM__BREAKER__OPEN_FOR": "30",
    "RESILIENCE_LLM__BREAKER__OPEN_MAX": "60",
}


class Forked:
    """A forked process, with those parts of `subprocess.Popen` that are used here."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        reads, input_ = FORKS.Pipe(duplex=False)
        output, writes = FORKS.Pipe(duplex=False)
        with reads, input_, output, writes:
            self.forked = FORKS.Process(
                target=worker_process.run, args=(reads, writes, dict(variables)), daemon=True
            )
            self.forked.start()
            self.stdin = os.fdopen(os.dup(input_.fileno()), "w", encoding="utf-8")
            self.stdout = os.fdopen(os.dup(output.fileno()), encoding="utf-8")

    @property
    def pid(self) -> int:
        assert self.forked.pid is not None
        return self.forked.pid

    def kill(self) -> None:
        self.forked.kill()

    def wait(self, seconds: float) -> int:
        self.forked.join(seconds)
        if self.forked.exitcode is None:
            raise subprocess.TimeoutExpired("a forked worker", seconds)
        return self.forked.exitcode


class WorkerProcess(CommandedProcess):
    def __init__(self, url: str, settings: dict[str, str]) -> None:
        inherited = {key: value for key, value in os.environ.items() if "RESILIENCE_" not in key}
        self.process: Any = Forked(inherited | SETTINGS | {"RESILIENCE_REDIS_URL": url} | settings)
        self.send("begin")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(5)


class Workers(list[WorkerProcess]):
    def each(self, do: str, **details: Any) -> list[dict[str, Any]]:
        """Send all workers the same command, then gather their answers."""
        return request_all(self, do, **details)


@contextmanager
def workers(
    url: str, *, number: int = 4, finds_redis: bool = True, **settings: str
) -> Iterator[Workers]:
    """Worker processes that have found Redis; keywords are variables, by default the breaker's."""
    names = {key if "__" in key else f"BREAKER__{key}": value for key, value in settings.items()}
    variables = {f"RESILIENCE_LLM__{name}": value for name, value in names.items()}
    made = Workers()
    try:
        for _ in range(number):
            made.append(WorkerProcess(url, variables))
        for worker in made:
            worker.receive()
        if finds_redis:  # earlier calls would count in their own process alone
            assert all(answer["at"] for answer in made.each("until", connected=True))
        yield made
    finally:
        for worker in made:
            worker.end()
