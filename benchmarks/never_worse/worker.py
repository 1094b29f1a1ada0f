"""One of the two processes: it runs scripts with protection, or without."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
from collections.abc import Coroutine
from typing import Any

from benchmarks.never_worse.parts import Figures, Start
from benchmarks.never_worse.rows import ROWS
from lightrag_resilience.testing.command_process import run_commands

_WATCH = 0.05  # seconds


class Worker:
    """Runs the scripts that it is told to begin, side by side."""

    def __init__(self, *, protected: bool) -> None:
        self._protected = protected
        self._rows = {row.name: row for row in ROWS}
        self._ready: list[Start] = []
        self._runs: dict[tuple[str, int], asyncio.Task[Figures]] = {}

    async def prepare(self, row: str, seed: int) -> None:
        """Make a script ready: its LightRAG knows what it will be asked."""
        start = Start()
        script = self._rows[row].run(protected=self._protected, seed=seed, start=start)
        run = self._runs[row, seed] = asyncio.create_task(_with_lag(script, start))
        run.add_done_callback(lambda _: start.prepared.set())  # it may fail before
        await start.prepared.wait()
        self._ready.append(start)

    async def go(self) -> None:
        """Begin all scripts that are ready."""
        while self._ready:
            self._ready.pop().go.set()

    async def finished(self) -> list[tuple[str, int, Figures]]:
        """The figures of scripts that have ended and were not told yet."""
        done = [key for key, run in self._runs.items() if run.done()]
        return [(*key, _figures(self._runs.pop(key))) for key in done]


async def _with_lag(script: Coroutine[Any, Any, Figures], start: Start) -> Figures:
    """Add how late the event loop was at the worst: a busy machine shows here."""
    lag = 0.0

    async def watch() -> None:
        nonlocal lag
        now = asyncio.get_running_loop().time
        await start.go.wait()
        while True:
            due = now() + _WATCH
            await asyncio.sleep(_WATCH)
            lag = max(lag, now() - due)

    watching = asyncio.create_task(watch())
    try:
        return await script | {"loop_lag": round(lag, 2)}
    finally:
        watching.cancel()


def _figures(run: asyncio.Task[Figures]) -> Figures:
    try:
        return run.result()
    except Exception:  # noqa: BLE001 - told to the process that prints
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    logging.disable()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run_commands(Worker(protected=sys.argv[1] == "protected")))
