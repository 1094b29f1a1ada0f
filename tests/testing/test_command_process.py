"""Processes that run commands."""

from __future__ import annotations

import pytest

from lightrag_resilience.testing.command_process import CommandedProcess, request_all

SCRIPT = """
import asyncio
from lightrag_resilience.testing.command_process import run_commands

class Worker:
    async def add(self, a, b=1):
        return a + b

asyncio.run(run_commands(Worker()))
"""


def commanded(script: str = SCRIPT) -> CommandedProcess:
    return CommandedProcess(["-c", script], {})


def test_a_process_answers_each_command() -> None:
    with commanded() as process:
        assert process.request("add", a=2) == 3
        assert process.request("add", a=2, b=5) == 7


def test_a_process_ends_when_its_input_is_closed() -> None:
    with commanded() as process:
        assert process.process.stdin is not None
        process.process.stdin.close()
        assert process.process.wait(10) == 0


def test_several_processes_work_at_the_same_time() -> None:
    with commanded() as one, commanded() as other:
        assert request_all([one, other], "add", a=1) == [2, 2]


def test_an_ended_process_raises_instead_of_waiting() -> None:
    with commanded("raise SystemExit(3)") as process, pytest.raises(RuntimeError, match="code 3"):
        process.receive()


def test_ending_leaves_no_process() -> None:
    with commanded() as process:
        process.request("add", a=1)
    assert process.process.poll() is not None
