"""One schedule of faults lived through twice on virtual time: by LightRAG alone, and protected.

The provider's fates depend on the time at which a call begins and, in a phase where only a share
of the calls fails, on a seeded draw. Both sides have LightRAG's queue of four workers in front.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Literal

import httpx
import tenacity

from lightrag_resilience import Guard, Policy
from lightrag_resilience.composition.wait_for_recovery import Patience, retry_until_available
from lightrag_resilience.config.process_settings import ProcessSettings
from lightrag_resilience.testing import VirtualTimeLoop

__all__ = [
    "ERROR_LATENCY",
    "Ended",
    "FailsWith",
    "Lived",
    "Phase",
    "Schedule",
    "Work",
    "alone",
    "protected",
]

FailsWith = Literal["500", "503", "refused", "hang"]
Call = Callable[[], Awaitable[float]]
"""Makes a call of the provider, and returns the seconds that its answer took."""

ERROR_LATENCY = 0.05  # seconds until an error comes
_WELL = 0.3  # seconds that an answer takes where no phase says otherwise
_LONGEST_PROBE = 5.0  # seconds: a probe asks for the smallest answer
_WORKERS = 4  # LightRAG's MAX_ASYNC
_REQUEST = httpx.Request("POST", "http://provider/v1/chat/completions")
_SETTINGS = ProcessSettings()


@dataclass(frozen=True)
class Phase:
    """For some seconds, a share of the calls that begin fails; answers take `latency` seconds."""

    seconds: float
    share: float
    fails_with: FailsWith = "503"
    latency: float = _WELL


@dataclass(frozen=True)
class Work:
    """A query or a document: calls one after the other, all of which must succeed."""

    at: float
    calls: int = 1
    is_ingest: bool = False


@dataclass(frozen=True)
class Schedule:
    """What happens to a provider, and what calls it.

    Attributes:
        phases: One after the other, from second 0 on; after them the provider is well.
        works: Queries and documents.
        timeout: Seconds that LightRAG gives an attempt.
        probe_share: Of the time of an answer that the small one of a probe takes.
        seed: Of the draws in phases with a share.
    """

    phases: tuple[Phase, ...]
    works: tuple[Work, ...]
    timeout: float = 240.0
    probe_share: float = 1.0
    seed: int = 0

    @property
    def slowest(self) -> float:
        """Seconds of the slowest answer."""
        return max((_WELL, *(phase.latency for phase in self.phases)))


@dataclass
class Ended:
    """How a piece of work ended.

    Attributes:
        work: What was asked.
        answered: Seconds at which it was done; None if it failed.
        failed: Seconds at which it failed; None if it was done.
        error: By which it failed.
        waited: Seconds from the begin of a call to the attempt that succeeded, at the most.
        queued: Seconds for which its calls waited for a worker of the queue.
        hung: How many of its attempts hung.
    """

    work: Work
    answered: float | None = None
    failed: float | None = None
    error: Exception | None = None
    waited: float = 0.0
    queued: float = 0.0
    hung: int = 0


@dataclass
class Lived:
    """How a schedule ended: all work, and when each call of the provider began, probes too."""

    works: list[Ended]
    calls: list[float] = field(default_factory=list)

    @property
    def answers(self) -> list[float]:
        """When each piece of work was done, in order."""
        return sorted(each.answered for each in self.works if each.answered is not None)


_current: ContextVar[Ended | None] = ContextVar("current", default=None)


class Provider:
    """Answers, fails or hangs as the phase says in which a call begins."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._draw = random.Random(schedule.seed).random
        self.calls: list[float] = []

    async def call(self) -> float:
        phase = await self._fate()
        await asyncio.sleep(phase.latency)
        return phase.latency

    async def probe(self) -> None:
        phase = await self._fate()
        await asyncio.sleep(min(phase.latency * self._schedule.probe_share, _LONGEST_PROBE))

    async def _fate(self) -> Phase:
        """The phase, where the call is answered."""
        loop = asyncio.get_running_loop()
        self.calls.append(loop.time())
        phase = self._phase_at(loop.time())
        if phase.latency >= self._schedule.timeout:
            phase = replace(phase, fails_with="hang", share=1.0)
        if phase.share == 0.0 or (phase.share < 1.0 and self._draw() >= phase.share):
            return phase
        if phase.fails_with == "hang":
            if (ended := _current.get()) is not None:
                ended.hung += 1
            await loop.create_future()
        await asyncio.sleep(ERROR_LATENCY)
        if phase.fails_with == "refused":
            raise httpx.ConnectError("refused", request=_REQUEST)
        response = httpx.Response(int(phase.fails_with), request=_REQUEST)
        raise httpx.HTTPStatusError(phase.fails_with, request=_REQUEST, response=response)

    def _phase_at(self, now: float) -> Phase:
        ends = 0.0
        for phase in self._schedule.phases:
            ends += phase.seconds
            if now < ends:
                return phase
        return Phase(0.0, 0.0)


class Queue:
    """LightRAG's queue: its workers, and twice the timeout for each call with its retries."""

    def __init__(self, timeout: float) -> None:
        self._workers = asyncio.Semaphore(_WORKERS)
        self._longest = 2 * timeout

    async def run(self, call: Call) -> float:
        clock, ended = asyncio.get_running_loop().time, _current.get()
        began = clock()
        async with self._workers:
            if ended is not None:
                ended.queued += clock() - began
            async with asyncio.timeout(self._longest):
                return await call()


def alone(schedule: Schedule) -> Lived:
    """LightRAG's openai binding: three attempts, 4 to 10 s apart, each up to the timeout."""

    def prepare(provider: Provider) -> Callable[[Work], Call]:
        queue = Queue(schedule.timeout)

        @tenacity.retry(
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_exponential(multiplier=1, min=4, max=10),
            sleep=asyncio.sleep,
        )
        async def call() -> float:
            async with asyncio.timeout(schedule.timeout):
                return await provider.call()

        return lambda _: lambda: queue.run(call)

    return _live(schedule, prepare)


def protected(schedule: Schedule) -> Lived:
    """A guard with its probe, by the defaults, and in front of the queue what makes work wait."""

    def prepare(provider: Provider) -> Callable[[Work], Call]:
        policy, queue = Policy.llm(), Queue(schedule.timeout)
        guard = Guard(
            "llm.openai",
            policy.with_changes(timeout=policy.timeout.inheriting(schedule.timeout)),
            clock=asyncio.get_running_loop().time,
        )
        guard.set_probe(provider.probe)
        waiting = Counter[str]()

        async def guarded() -> float:
            return await guard.run(provider.call, (), {})

        def calls_of(work: Work) -> Call:
            of_query = Patience(
                _SETTINGS.query__patience,
                max_outage=_SETTINGS.query__max_outage,
                waiting=waiting,
                most_waiting=100,
            )

            async def call() -> float:  # as `call_guarded` of LightRAG's integration
                return await retry_until_available(
                    guard,
                    lambda: queue.run(guarded),
                    patience=Patience(_SETTINGS.ingest_patience) if work.is_ingest else of_query,
                    is_background=work.is_ingest,
                )

            return call

        return calls_of

    return _live(schedule, prepare)


def _live(schedule: Schedule, prepare: Callable[[Provider], Callable[[Work], Call]]) -> Lived:
    async def live() -> Lived:
        provider = Provider(schedule)
        calls_of = prepare(provider)
        lived = Lived([Ended(work) for work in schedule.works], provider.calls)
        async with asyncio.TaskGroup() as group:
            for ended in lived.works:
                group.create_task(_do(ended, calls_of(ended.work)))
        return lived

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(live())


async def _do(ended: Ended, call: Call) -> None:
    clock = asyncio.get_running_loop().time
    _current.set(ended)
    await asyncio.sleep(ended.work.at)
    try:
        for _ in range(ended.work.calls):
            began = clock()
            latency = await call()
            ended.waited = max(ended.waited, clock() - began - latency)
        ended.answered = clock()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
        ended.failed, ended.error = clock(), error
