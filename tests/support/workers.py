"""Several worker processes on one Redis, told what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("worker_process.py")
SETTINGS = {
    "RESILIENCE_LLM__RETRY__ATTEMPTS": "1",
    "RESILIENCE_LLM__BREAKER__OPEN_FOR": "30",
    "RESILIENCE_LLM__BREAKER__OPEN_MAX": "60",
}


class WorkerProcess:
    def __init__(self, url: str, settings: dict[str, str]) -> None:
        ours = {**SETTINGS, "RESILIENCE_REDIS_URL": url, **settings}
        theirs = {key: value for key, value in os.environ.items() if "RESILIENCE" not in key}
        self.process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(SCRIPT)],
            env={**theirs, **ours},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.tell("begin")

    def tell(self, do: str, **details: Any) -> None:
        """Give a command; `answer` waits for what comes of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **details}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"a worker ended with code {self.process.wait(5)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        self.tell(do, **details)
        return self.answer()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(5)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(5)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Workers(list[WorkerProcess]):
    def each(self, do: str, **details: Any) -> list[dict[str, Any]]:
        """Give all the same command, then gather their answers."""
        for worker in self:
            worker.tell(do, **details)
        return [worker.answer() for worker in self]


@contextmanager
def workers(url: str, *, number: int = 4, **settings: str) -> Iterator[Workers]:
    """Worker processes that have found Redis; keywords are more variables of the llm's breaker."""
    variables = {f"RESILIENCE_LLM__BREAKER__{key}": value for key, value in settings.items()}
    made = Workers()
    try:
        for _ in range(number):
            made.append(WorkerProcess(url, variables))
        for worker in made:
            worker.answer()
        yield made
    finally:
        for worker in made:
            worker.end()
