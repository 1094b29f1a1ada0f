"""Calls of every kind for minutes, and whether memory stays where it was.

``python -m benchmarks.soak [--minutes 10] [--json FILE | --page]``

The breaker and the limits are shared through a real Redis, and Prometheus looks. What is there
after the first quarter, when windows are full and pools have grown, is compared to what is there at
the end: traced memory may grow by a twentieth or 200 KB, the process by a tenth or 8 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.server import redis_url
from benchmarks.stacks.ours import make_registry
from lightrag_resilience import (
    BreakerPolicy,
    CallRejected,
    ConcurrencyPolicy,
    LimitPolicy,
    Policy,
    ResilienceError,
    resilient,
)
from lightrag_resilience.telemetry.prometheus import observe

__all__ = ["Soaked", "soak"]

_CALLERS = 20
_DEPENDENCIES = 4
_SAMPLES = 40
_TRACED_SHARE, _TRACED_BYTES = 0.05, 200_000
_RSS_SHARE, _RSS_BYTES = 0.1, 8_000_000


@dataclass(frozen=True, slots=True)
class Soaked:
    """How it went.

    Attributes:
        minutes: It took.
        calls: That were made.
        outcomes: How they ended, by the name of the error, or ``ok``.
        traced: Bytes after the first quarter, and at the end, as tracemalloc has them.
        rss: Bytes of the process after the first quarter, and at the end.
        pending: Tasks that were left when all callers had ended.
    """

    minutes: float
    calls: int
    outcomes: dict[str, int]
    traced: tuple[int, int]
    rss: tuple[int, int]
    pending: int

    @property
    def is_flat(self) -> bool:
        """Whether memory stayed where it was."""
        traced = self.traced[1] - self.traced[0]
        rss = self.rss[1] - self.rss[0]
        return (
            traced <= max(_TRACED_SHARE * self.traced[0], _TRACED_BYTES)
            and rss <= max(_RSS_SHARE * self.rss[0], _RSS_BYTES)
            and self.pending == 0
        )


class _Calls:
    """Functions under guards, and how calls of them end."""

    def __init__(self, name: str, decorate: Callable[[Any], Any], chance: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self._chance = chance
        self._name = name
        self._ask = decorate(self._answer)
        self._stream = decorate(self._tokens)
        self.kinds: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self.ask,
            self.ask,
            self.read,
            self.stop_reading,
            self.give_up,
        )
        self.is_down = False

    async def _answer(self, prompt: str) -> str:
        await asyncio.sleep(0.001)
        if self.is_down or self._chance.random() < 0.1:
            raise ConnectionError(self._name)
        if self._chance.random() < 0.05:
            raise ValueError(prompt)
        return prompt * 10

    async def _tokens(self, prompt: str) -> AsyncIterator[str]:
        for number in range(20):
            if self.is_down and number == 10:
                raise ConnectionError(self._name)
            yield prompt
            await asyncio.sleep(0)

    async def ask(self) -> None:
        await self._ask("a question ")

    async def read(self) -> None:
        async for _ in self._stream("token "):
            pass

    async def stop_reading(self) -> None:
        stream = self._stream("token ")
        async for _ in stream:
            break
        await stream.aclose()

    async def give_up(self) -> None:
        """Cancel a call under way."""
        task = asyncio.ensure_future(self._ask("never mind "))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def one(self) -> None:
        """A call of any kind."""
        try:
            await self._chance.choice(self.kinds)()
        except (ConnectionError, ValueError, ResilienceError) as error:
            self.outcomes[type(error).__name__] += 1
            if isinstance(error, CallRejected):
                await asyncio.sleep(0.002)
        else:
            self.outcomes["ok"] += 1


async def soak(seconds: float) -> Soaked:
    """Call for so long."""
    registry = make_registry(redis_url=redis_url())
    metrics = CollectorRegistry()
    observation = observe(registry, registry=metrics)
    policy = Policy.llm(
        breaker=BreakerPolicy(open_for=0.2, open_max=0.5),
        limit=LimitPolicy(rpm=600_000, tpm=1_000_000_000),
        concurrency=ConcurrencyPolicy(max_concurrent=3),
    )
    chance = random.Random(8)
    calls = [
        _Calls(name, resilient_to(name, policy, registry), chance)
        for name in (f"llm.soak.{number}" for number in range(_DEPENDENCIES))
    ]
    until = time.monotonic() + seconds
    memory = asyncio.create_task(_watch(seconds, metrics, calls))
    await asyncio.gather(*(_call_on(calls, chance, until) for _ in range(_CALLERS)))
    samples = await memory
    pending = len(asyncio.all_tasks()) - 1
    registry.close()
    observation.close()
    outcomes = sum((one.outcomes for one in calls), Counter[str]())
    warm = samples[len(samples) // 4]
    return Soaked(
        minutes=round(seconds / 60, 2),
        calls=outcomes.total(),
        outcomes=dict(outcomes.most_common()),
        traced=(warm[0], samples[-1][0]),
        rss=(warm[1], samples[-1][1]),
        pending=pending,
    )


def resilient_to(name: str, policy: Policy, registry: Any) -> Callable[[Any], Any]:
    """A decorator for several functions of one dependency."""

    def decorate(function: Any) -> Any:
        return resilient(name, policy, registry=registry)(function)

    return decorate


async def _call_on(calls: list[_Calls], chance: random.Random, until: float) -> None:
    while time.monotonic() < until:
        await chance.choice(calls).one()


async def _watch(
    seconds: float, metrics: CollectorRegistry, calls: list[_Calls]
) -> list[tuple[int, int]]:
    """Traced bytes and the process's, forty times; dependencies go down and up meanwhile."""
    samples = []
    for number in range(_SAMPLES):
        await asyncio.sleep(seconds / _SAMPLES)
        for turn, one in enumerate(calls):
            one.is_down = number % len(calls) == turn and number < _SAMPLES - 1
        generate_latest(metrics)
        gc.collect()
        samples.append((tracemalloc.get_traced_memory()[0], _rss()))
    return samples


def _rss() -> int:
    """Bytes of this process that are in memory, where Linux says so."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * 4096


def main() -> int:
    """1 where memory grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--page", action="store_true", help="put them in docs/performance.md")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    tracemalloc.start()
    soaked = asyncio.run(soak(options.minutes * 60))
    print(json.dumps(asdict(soaked), indent=1))
    print("flat" if soaked.is_flat else "GROWN")
    if options.json:
        options.json.write_text(json.dumps(asdict(soaked), indent=1) + "\n", encoding="utf-8")
    if options.page:
        from benchmarks import page  # noqa: PLC0415 - it needs what the report needs

        page.add("soak", asdict(soaked))
    return 0 if soaked.is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
