"""A process that holds many workers, each with guards, a thread and connections of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from lightrag_resilience import BreakerPolicy, CallRejected, Guard, Guards, Policy
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import Event, StateChanged
from lightrag_resilience.testing.command_process import run_commands

NAME = "llm.model"
_LONGEST = 30.0  # seconds until all have found Redis, or changed their state


class _Worker:
    """What elsewhere is a process."""

    def __init__(self, url: str, policy: Policy) -> None:
        self.guards = Guards(settings=load_settings({"RESILIENCE_REDIS_URL": url}))
        self.guards.events.subscribe(self._on_event)
        self.guard: Guard = self.guards.get(NAME, policy)
        self.since: dict[str, float] = {}
        self.probes = 0

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self.since[event.new] = time.monotonic()

    @property
    def state(self) -> str:
        return self.guard.breaker.state.value

    async def call(self, *, fails: bool = False) -> None:
        """One call; what is refused is no more than that."""

        async def dependency() -> None:
            self.probes += self.state == "half-open"
            if fails:
                raise ConnectionRefusedError("made up")

        with contextlib.suppress(CallRejected, ConnectionRefusedError):
            await self.guard.call(dependency)


class Process:
    """Commands for all of them."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._callers: list[asyncio.Task[None]] = []

    async def begin(self, url: str, number: int, open_for: float, probes: int) -> None:
        """Make so many, and wait until they have found Redis."""
        breaker = BreakerPolicy(open_for=open_for, open_max=open_for, probes=probes)
        policy = Policy.llm(breaker=breaker, attempts=1)
        self._workers = [_Worker(url, policy) for _ in range(number)]
        for worker in self._workers:
            await worker.call()
        await _until(lambda: all(_is_connected(worker) for worker in self._workers))

    async def call_on(self, every: float) -> None:
        """Let each of them make a call every so many seconds, until `end`."""

        async def calls(worker: _Worker, first: float) -> None:
            await asyncio.sleep(first)
            while True:
                await worker.call()
                await asyncio.sleep(every)

        number = len(self._workers)
        self._callers = [
            asyncio.create_task(calls(worker, every * turn / number))
            for turn, worker in enumerate(self._workers)
        ]

    async def end(self) -> int:
        """End the callers; how many probes there were."""
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        probes = sum(worker.probes for worker in self._workers)
        for worker in self._workers:
            worker.probes = 0
        return probes

    async def trip(self) -> float:
        """Let the first of them fail until its breaker is open; when that was."""
        first = self._workers[0]
        while first.state != "open":
            await first.call(fails=True)
        return first.since["open"]

    async def all_in(self, state: str) -> list[float]:
        """Wait until all are in a state; since when each is."""
        await _until(lambda: all(worker.state == state for worker in self._workers))
        return [worker.since.get(state, 0.0) for worker in self._workers]

    async def busy(self) -> float:
        """Seconds of processor time so far."""
        return time.process_time()


def _is_connected(worker: _Worker) -> bool:
    link = worker.guards.link
    return link is not None and link.is_up


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(_LONGEST):
        while not holds():  # noqa: ASYNC110 - some changes publish no event
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    logging.disable()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run_commands(Process()))
