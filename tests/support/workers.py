"""Several worker processes on one Redis, controlled by commands."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightrag_resilience.testing.command_process import CommandedProcess, request_all

SCRIPT = Path(__file__).with_name("worker_process.py")
SETTINGS = {
    "RESILIENCE_LLM__RETRY__ATTEMPTS": "1",
    "RESILIENCE_LLM__BREAKER__CONSECUTIVE_FAILURES": "5",
    "RESILIENCE_LLM__BREAKER__FAILURE_RATE": "0.5",
    "RESILIENCE_LLM__BREAKER__OPEN_FOR": "30",
    "RESILIENCE_LLM__BREAKER__OPEN_MAX": "60",
}


class WorkerProcess(CommandedProcess):
    def __init__(self, url: str, settings: dict[str, str]) -> None:
        super().__init__([str(SCRIPT)], {**SETTINGS, "RESILIENCE_REDIS_URL": url, **settings})
        self.send("begin")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(5)


class Workers(list[WorkerProcess]):
    def each(self, do: str, **details: Any) -> list[dict[str, Any]]:
        """Send all workers the same command, then gather their answers."""
        return request_all(self, do, **details)


@contextmanager
def workers(url: str, *, number: int = 4, **settings: str) -> Iterator[Workers]:
    """Worker processes that have found Redis; keywords are variables, by default the breaker's."""
    names = {key if "__" in key else f"BREAKER__{key}": value for key, value in settings.items()}
    variables = {f"RESILIENCE_LLM__{name}": value for name, value in names.items()}
    made = Workers()
    try:
        for _ in range(number):
            made.append(WorkerProcess(url, variables))
        for worker in made:
            worker.receive()
        yield made
    finally:
        for worker in made:
            worker.end()
