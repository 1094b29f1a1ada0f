"""One worker process of the demo: it calls the provider at intervals, through a guard."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import httpx

from lightrag_resilience.errors import CallRejected
from lightrag_resilience.events import Event, StateChanged
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.testing.command_process import run_commands

NAME = "llm.simulated"
_STATE_TIMEOUT = 15.0  # seconds to wait for a state


class DemoWorker:
    """What `lightrag_resilience.demo.workers` commands; times are the machine's monotonic clock."""

    def __init__(self) -> None:
        self._guards = Guards()
        self._guard: Guard = self._guards.get(NAME)
        self._guards.events.subscribe(self._on_event, StateChanged)
        self._calls: list[float] = []
        self._probes = 0
        self._failed = 0
        self._rejected = 0
        self._changes: list[tuple[str, float]] = []
        self._asking: asyncio.Task[None] | None = None

    async def ask_steadily(self, base_url: str, pause: float) -> None:
        """Start to call the provider every `pause` seconds."""
        self._asking = asyncio.create_task(self._ask_steadily(base_url, pause))

    async def wait_for(self, state: str) -> None:
        """Wait until the breaker is in this state, at most 15 s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STATE_TIMEOUT):
                while self._guard.breaker.state.value != state:  # noqa: ASYNC110 - lapses in silence
                    await asyncio.sleep(0.001)

    async def end(self) -> dict[str, Any]:
        """Stop calling, and return what happened."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        self._guards.close()
        return {
            "calls": self._calls,
            "probes": self._probes,
            "failed": self._failed,
            "rejected": self._rejected,
            "changes": self._changes,
        }

    async def _ask_steadily(self, base_url: str, pause: float) -> None:
        async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:

            async def ask() -> None:
                self._calls.append(time.monotonic())
                self._probes += self._guard.breaker.state.value == "half-open"
                answer = await client.get("/models")
                answer.raise_for_status()

            while True:
                try:
                    await self._guard.call(ask)
                except CallRejected:
                    self._rejected += 1
                except httpx.HTTPError:
                    self._failed += 1
                await asyncio.sleep(pause)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self._changes.append((event.new, time.monotonic()))


if __name__ == "__main__":
    logging.disable()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run_commands(DemoWorker()))
