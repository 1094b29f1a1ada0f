"""The loops that take time. Rounds of all stacks in a new order each, so that noise hits all alike.

A cost is what a call takes above the bare call of the same round: above the bare call that returns
for the happy path and for a refusal, above the bare call that raises for a failure.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from benchmarks.calls import answer, reject, trip, unreachable
from benchmarks.stack import Call, Setup, Stack

__all__ = ["Samples", "failing", "happy", "refused", "throughput"]

Samples = dict[str, list[float]]
"""For each stack, one figure a round; the first is of round one for all of them."""

_REAL_CALL = 0.05  # seconds


async def happy(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Seconds of a call that returns."""
    ready = {stack.name: stack.protect(answer, Setup()) for stack in stacks}
    for call in ready.values():
        await _returning(call, 200)  # windows are full, and what is made on first use is there
    return await _in_rounds(ready, rounds, lambda call: _returning(call, calls))


async def refused(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Seconds of a call that an open breaker refuses; of a bare call that returns."""
    ready = {}
    for stack in stacks:
        ready[stack.name] = stack.protect(unreachable if stack.refusal else answer, Setup())
        if stack.refusal:
            await trip(stack, ready[stack.name])
    errors = tuple(stack.refusal for stack in stacks if stack.refusal)
    return await _in_rounds(ready, rounds, lambda call: _raising(call, calls, errors))


async def failing(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Seconds of a call that raises what is not retried."""
    ready = {stack.name: stack.protect(reject, Setup()) for stack in stacks}
    return await _in_rounds(ready, rounds, lambda call: _raising(call, calls, (ValueError,)))


async def throughput(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Calls a second, of so many calls at once that take 50 ms each."""

    async def wait(number: int) -> int:
        await asyncio.sleep(_REAL_CALL)
        return number

    ready = {stack.name: stack.protect(wait, Setup()) for stack in stacks}
    return await _in_rounds(ready, rounds, lambda call: _at_once(call, calls))


async def _in_rounds(
    ready: dict[str, Call], rounds: int, measure: Callable[[Call], Awaitable[float]]
) -> Samples:
    samples: Samples = {name: [] for name in ready}
    order = list(ready)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            await asyncio.sleep(0)  # the loop drops the timers that the last sample cancelled
            with _no_collection():
                samples[name].append(await measure(ready[name]))
    return samples


async def _returning(call: Call, calls: int) -> float:
    began = perf_counter()
    for _ in range(calls):
        await call(1)
    return (perf_counter() - began) / calls


async def _raising(call: Call, calls: int, errors: tuple[type[Exception], ...]) -> float:
    began = perf_counter()
    for _ in range(calls):
        try:  # noqa: SIM105 - suppress() costs as much as what is measured
            await call(1)
        except errors:
            pass
    return (perf_counter() - began) / calls


async def _at_once(call: Call, calls: int) -> float:
    began = perf_counter()
    await asyncio.gather(*[call(1) for _ in range(calls)])
    return calls / (perf_counter() - began)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect what the last sample left, and nothing during this one."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
