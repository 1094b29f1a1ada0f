"""Processes that run commands: a command on standard input, and its answer, is a line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

__all__ = ["CommandedProcess", "request_all", "run_commands"]

_END = 5.0  # seconds after SIGKILL


class CommandedProcess:
    """A Python process that runs `run_commands`, from the side that sends the commands.

    Args:
        arguments: Arguments of the interpreter, such as ``["-m", "package.module"]``.
        variables: Environment variables, added to those of this process except RESILIENCE_*.
    """

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        inherited = {key: value for key, value in os.environ.items() if "RESILIENCE_" not in key}
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, *arguments],
            env={**inherited, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def send(self, do: str, **details: Any) -> None:
        """Send a command; `receive` returns its answer."""
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        self.process.stdin.write(json.dumps({"do": do, **details}) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """Wait for the next answer.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A commanded process ended with code {self.process.wait(_END)}")
        return json.loads(line)

    def request(self, do: str, **details: Any) -> Any:
        """Send a command, and wait for the answer."""
        self.send(do, **details)
        return self.receive()

    def end(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait(_END)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def request_all(processes: Sequence[CommandedProcess], do: str, **details: Any) -> list[Any]:
    """Send all processes the same command, then gather their answers."""
    for process in processes:
        process.send(do, **details)
    return [process.receive() for process in processes]


async def run_commands(worker: object) -> None:
    """Run each command from standard input as a method of `worker`, until the input ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command: dict[str, Any] = json.loads(line)
        answer = await getattr(worker, command.pop("do"))(**command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
