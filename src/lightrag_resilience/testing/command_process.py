"""Processes that do what they are told: a command, and its answer, is a line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

__all__ = ["CommandedProcess", "obey", "together"]

_END = 5.0  # seconds after SIGKILL


class CommandedProcess:
    """An interpreter that runs `obey`, from the side that commands it.

    Args:
        arguments: What the interpreter runs, such as ``["-m", "package.module"]``.
        variables: RESILIENCE_* variables, or others, beside those of this process that are not
            RESILIENCE_*.
    """

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        theirs = {key: value for key, value in os.environ.items() if "RESILIENCE_" not in key}
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, *arguments],
            env={**theirs, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def tell(self, do: str, **details: Any) -> None:
        """Give a command; `answer` waits for what comes of it."""
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        self.process.stdin.write(json.dumps({"do": do, **details}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the next answer.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A commanded process ended with code {self.process.wait(_END)}")
        return json.loads(line)

    def ask(self, do: str, **details: Any) -> Any:
        """Give a command, and wait for the answer."""
        self.tell(do, **details)
        return self.answer()

    def end(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait(_END)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def together(processes: Sequence[CommandedProcess], do: str, **details: Any) -> list[Any]:
    """Give all the same command, then gather their answers."""
    for process in processes:
        process.tell(do, **details)
    return [process.answer() for process in processes]


async def obey(worker: object) -> None:
    """Do what standard input says, with the methods of `worker`, until it ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command: dict[str, Any] = json.loads(line)
        answer = await getattr(worker, command.pop("do"))(**command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
