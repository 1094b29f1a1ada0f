"""Real processes that are stopped by real signals."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from lightrag_resilience.draining.journal import Journal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

PROGRAM = """
import asyncio, sys
import {library}
from lightrag_resilience import ShuttingDownError, guard
from lightrag_resilience.shutdown import Coordinator

def say(text):
    print(text, flush=True)

async def call(seconds):
    await asyncio.sleep(seconds)
    return "answer"

async def work(seconds):
    say(await guard("llm").call(call, seconds))

async def main():
    async with Coordinator(timeout={timeout}, cancel_grace=0.3, close_timeout=0.3,
                           journal=sys.argv[1]) as coordinator:
        coordinator.on_close(lambda: say("closed"))
        background = coordinator.track(asyncio.create_task(work({seconds}), name="background"))
        say("begun")
        await coordinator.stopping.wait()
        try:
            await guard("llm").call(call, 0)
        except ShuttingDownError:
            say("refused")
    say("end")

{run}
"""
RUN = {"asyncio": "asyncio.run(main())", "anyio": "anyio.run(main)"}


@contextmanager
def program(
    journal: Path, *, seconds: float, timeout: float = 20.0, library: str = "asyncio"
) -> Iterator[subprocess.Popen[str]]:
    text = PROGRAM.format(library=library, timeout=timeout, seconds=seconds, run=RUN[library])
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", text, str(journal)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert lines(process.stdout, 1) == ["begun"]
        yield process
    finally:
        process.kill()
        process.wait()


def lines(stream: IO[str] | None, count: int) -> list[str]:
    assert stream is not None
    return [stream.readline().strip() for _ in range(count)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("library", RUN)
def test_work_in_flight_ends_and_new_work_is_rejected(
    library: str, number: signal.Signals, tmp_path: Path
) -> None:
    with program(tmp_path / "journal", seconds=1.0, library=library) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert out.split() == ["refused", "answer", "closed", "end"]
    assert (process.returncode, err) == (0, "")
    assert list(Journal(tmp_path / "journal").read()) == []


def test_work_that_does_not_end_in_time_is_in_the_journal(tmp_path: Path) -> None:
    with program(tmp_path / "journal", seconds=60.0, timeout=1.5) as process:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert out.split() == ["refused", "closed", "end"]
    assert process.returncode == 0
    written = list(Journal(tmp_path / "journal").read())
    assert [(each.name, each.kind, each.signal) for each in written] == [
        ("background", "task", "SIGTERM")
    ]
    assert written[0].pid == process.pid


def test_a_second_signal_skips_the_waiting(tmp_path: Path) -> None:
    with program(tmp_path / "journal", seconds=60.0, timeout=50.0) as process:
        process.send_signal(signal.SIGTERM)
        assert lines(process.stdout, 1) == ["refused"]
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < 25:
            process.send_signal(signal.SIGTERM)  # from a second after the first on it is a second
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3)
        out, _ = process.communicate(timeout=5)
    assert out.split() == ["closed", "end"]
    assert [each.name for each in Journal(tmp_path / "journal").read()] == ["background"]
