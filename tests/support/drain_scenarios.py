"""What is done to a real Gunicorn at its end, one scenario each; the tests say what must follow."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from lightrag_resilience.draining.journal import AbandonedWork
from support.masters import Master, results, running

LONG = 60.0  # seconds of work that no drain waits for


@dataclass
class Outcome:
    """What became of the work of one Gunicorn."""

    lost: set[str]
    begun: list[str]
    done: list[str]
    records: dict[str, AbandonedWork]
    marked: Callable[[str, str], list[tuple[str, int]]]
    seconds: float
    code: int | None
    log: str
    seen: dict[str, Any] = field(default_factory=dict)


async def fits(master: Master, seen: dict[str, Any]) -> None:
    """All kinds of work of a second, while a websocket and a connection are idle."""
    async with master.client(keeps=1) as idle, connect(f"ws://127.0.0.1:{master.port}/talk") as ws:
        await idle.get("/idle")
        await master.until(lambda: "talk" in master.begun)
        for kind in ("task", "after", "thread", "child"):
            await asyncio.gather(*await master.begin(kind, 1.5))
        streams = await master.begin("stream", 1.0)
        requests = await master.begin("request", 1.0, 20)
        await master.stop(signal.SIGTERM)
        seen["request"] = await results(requests)
        (stream,) = streams
        seen["stream"] = (await stream).text
        await ws.wait_closed()
        seen["websocket"] = ws.close_code


async def fits_not(master: Master, seen: dict[str, Any]) -> None:
    """All kinds of work of a minute, but for a thread, which cannot be ended."""
    await asyncio.gather(*await master.begin("thread", 4.0))
    for kind in ("task", "after", "child"):
        await asyncio.gather(*await master.begin(kind, LONG))
    streams = await master.begin("stream", LONG)
    requests = await master.begin("request", LONG, 3)
    await master.stop(signal.SIGTERM)
    seen["request"] = await results(requests)
    seen["stream"] = await results(streams)


async def untracked(master: Master, seen: dict[str, Any]) -> None:
    """A task without an owner."""
    del seen
    await asyncio.gather(*await master.begin("untracked", LONG))
    await master.stop(signal.SIGTERM)


def signalled(*signals: signal.Signals) -> Callable[[Master, dict[str, Any]], Awaitable[None]]:
    async def send(master: Master, seen: dict[str, Any]) -> None:
        """The master gets a signal for a fast stop, although there is time."""
        await asyncio.gather(*await master.begin("task", LONG))
        requests = await master.begin("request", LONG, 4)
        await master.stop(*signals)
        seen["request"] = await results(requests)

    return send


async def twice(master: Master, seen: dict[str, Any]) -> None:
    """The workers themselves get the signal twice."""
    await asyncio.gather(*await master.begin("task", 2.0))
    requests = await master.begin("request", 2.0, 4)
    workers = master.pids
    for _ in range(2):
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        await asyncio.sleep(0.3)
    seen["request"] = await results(requests)
    await master.until(lambda: len(master.pids) >= 4)  # two new ones
    await master.stop(signal.SIGTERM)


async def fewer(master: Master, seen: dict[str, Any]) -> None:
    """There is one worker too many, which its master signals every second."""
    await asyncio.gather(*await master.begin("task", 3.5, 10))
    requests = await master.begin("request", 3.5, 10)
    master.process.send_signal(signal.SIGTTOU)
    seen["request"] = await results(requests)
    await master.until(lambda: master.marked("exit"))
    await master.stop(signal.SIGTERM)


async def reload(master: Master, seen: dict[str, Any]) -> None:
    """Workers are replaced."""
    for kind in ("task", "after", "thread"):
        await asyncio.gather(*await master.begin(kind, 1.5))
    requests = await master.begin("request", 1.0, 20)
    master.process.send_signal(signal.SIGHUP)
    await master.until(lambda: len(master.marked("exit")) >= 2)
    seen["request"] = await results(requests)
    seen["later"] = await results(await master.begin("request", 0.0, 10))
    await master.stop(signal.SIGTERM)


async def max_requests(master: Master, seen: dict[str, Any]) -> None:
    """Workers end themselves after a few requests."""
    seen["task"] = []
    for turn in range(6):
        asked = [master.http.get(f"/task-{turn}-{each}?task=0.7") for each in range(2)]
        seen["task"] += await results(asked)
    await master.until(lambda: master.marked("exit"))
    await master.stop(signal.SIGTERM)


async def killed(master: Master, seen: dict[str, Any]) -> None:
    """Both workers are killed by the system; the master lives on."""
    tasks = await master.begin("task", LONG, 6)
    await asyncio.gather(*tasks)
    requests = await master.begin("request", LONG, 4)
    for pid in master.pids:
        os.kill(pid, signal.SIGKILL)
    seen["request"] = await results(requests)
    await master.until(lambda: len(master.records()) >= 10)
    await master.until(lambda: len(master.pids) >= 4)
    seen["later"] = await results(await master.begin("request", 0.0, 10))
    await master.stop(signal.SIGTERM)


async def blocked(master: Master, seen: dict[str, Any]) -> None:
    """A blocked loop sends no heartbeat, so Gunicorn kills the worker."""
    async with master.client(keeps=1) as same:
        await asyncio.gather(*await master.begin("task", LONG, http=same))
        requests = await master.begin("blocked", LONG, http=same)
        await master.until(lambda: len(master.records()) >= 2)
        seen["blocked"] = await results(requests)
    await master.until(lambda: len(master.pids) >= 3)
    seen["later"] = await results(await master.begin("request", 0.0, 10))
    await master.stop(signal.SIGTERM)


async def blocked_at_the_end(master: Master, seen: dict[str, Any]) -> None:
    """A blocked loop ignores every signal, so that SIGKILL ends it."""
    async with master.client(keeps=1) as same:
        await asyncio.gather(*await master.begin("task", LONG, http=same))
        requests = await master.begin("blocked", LONG, http=same)
        await master.stop(signal.SIGTERM)
        seen["blocked"] = await results(requests)


Scenario = Callable[[Master, dict[str, Any]], Awaitable[None]]
SHORT = {"budget": (3.0, 0.5, 0.5), "graceful_timeout": 20}  # 2 s to end
AMPLE = {"budget": (45.0, 2.0, 2.0), "graceful_timeout": 50}
SCENARIOS: dict[str, tuple[Scenario, dict[str, Any]]] = {
    "fits": (fits, AMPLE),
    "fits not": (fits_not, SHORT),
    "untracked": (untracked, SHORT),
    "SIGQUIT": (signalled(signal.SIGQUIT), AMPLE),
    "SIGINT": (signalled(signal.SIGINT), AMPLE),
    "SIGTERM, then SIGQUIT": (signalled(signal.SIGTERM, signal.SIGQUIT), AMPLE),
    "SIGTERM twice": (twice, AMPLE),
    "SIGTTOU": (fewer, AMPLE),
    "SIGHUP": (reload, AMPLE),
    "max_requests": (max_requests, {**AMPLE, "max_requests": 3}),
    "kill -9": (killed, AMPLE),
    "blocked": (blocked, {**AMPLE, "timeout": 4}),
    "blocked at the end": (blocked_at_the_end, {**SHORT, "graceful_timeout": 4}),
}


async def outcome(folder: Path, worker: str, name: str) -> Outcome:
    """Play one scenario."""
    scenario, settings = SCENARIOS[name]
    seen: dict[str, Any] = {}
    async with running(folder, worker, **settings) as master:
        await scenario(master, seen)
        return Outcome(
            lost=master.lost(),
            begun=master.begun,
            done=master.done,
            records=master.records(),
            marked=master.marked,
            seconds=master.seconds,
            code=master.process.returncode,
            log=master.log.read_text(),
            seen=seen,
        )


async def outcomes(folder: Path, worker: str, *, at_once: int = 4) -> dict[str, Any]:
    """Play all scenarios, a few at once; where one breaks off, its outcome is what broke it off."""
    room = asyncio.Semaphore(at_once)

    async def play(name: str) -> Any:
        async with room:
            return await outcome(folder / name.replace(" ", "-"), worker, name)

    played = await asyncio.gather(*map(play, SCENARIOS), return_exceptions=True)
    return dict(zip(SCENARIOS, played, strict=True))
