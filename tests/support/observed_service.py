"""A service to be scraped: a protected LightRAG that is asked all the time, until SIGTERM.

``python observed_service.py PORT FOLDER``: metrics at PORT. While FOLDER holds a file ``down`` its
provider fails; its drain gives a task up and waits at its end for a file ``seen``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server

from lightrag_resilience import StaleCache, call_chain, guards, hedged, resilient, with_fallbacks
from lightrag_resilience.demo.rig import Rig, build_rig
from lightrag_resilience.shutdown import Coordinator
from lightrag_resilience.telemetry.prometheus import observe
from lightrag_resilience.testing import Fault

TEXT = "Ada founded Alderwick beside the river."
LONGEST = 120.0  # seconds that the test may take to look at the drain


async def main(port: int, folder: Path) -> None:
    observe(guards())
    start_http_server(port, "127.0.0.1")
    async with (
        build_rig(protected=True, seed=1, guards=guards()) as rig,
        Coordinator(timeout=LONGEST + 10, cancel_grace=1, close_timeout=LONGEST + 5) as coordinator,
    ):
        await rig.rag.ainsert(TEXT)
        coordinator.track(asyncio.create_task(asyncio.Event().wait(), name="never ends"))
        coordinator.on_close(lambda: until_seen(folder), timeout=LONGEST)
        load = [asyncio.create_task(work(rig, folder)) for work in (ask, hiccups, provide)]
        await coordinator.stopping.wait()
        await coordinator.drain("on request")
        for task in load:
            task.cancel()
        await asyncio.wait(load)


async def ask(rig: Rig, folder: Path) -> None:
    for number in itertools.count():
        with contextlib.suppress(Exception):
            await rig.ask(f"Who founded town {number}?")
        await asyncio.sleep(0.02)


async def provide(rig: Rig, folder: Path) -> None:
    while True:
        is_down = (folder / "down").exists()
        rig.provider.set_faults([Fault.status(500)] if is_down else [])
        await asyncio.sleep(0.02)


async def hiccups(rig: Rig, folder: Path) -> None:
    """What happens now and then in any service: a retry, a late read; in an outage, a chain."""
    numbers = itertools.count()

    @resilient("storage.orders")
    async def flaky(_: str) -> str:
        if next(numbers) % 10 == 9:
            raise ConnectionRefusedError("once")
        return "an order"

    @hedged(after=0.001)
    @resilient("storage.orders")
    async def late() -> str:
        await asyncio.sleep(0.01)
        return "an order"

    @resilient("llm.other")
    async def other(_: str) -> str:
        if (folder / "down").exists():
            raise ConnectionRefusedError("down")
        return "an answer"

    chain = with_fallbacks(other, flaky)
    alone = with_fallbacks(other, stale=StaleCache(max_age=600))
    for number in itertools.count():
        with contextlib.suppress(Exception):
            await flaky("one")
            await chain("what?")
            await call_chain(alone, "what?")
        if number % 20 == 0:
            with contextlib.suppress(Exception):
                await late()
        await asyncio.sleep(0.05)


async def until_seen(folder: Path) -> None:
    while not (folder / "seen").exists():  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    arguments: Any = sys.argv[1:]
    asyncio.run(main(int(arguments[0]), Path(arguments[1])))
