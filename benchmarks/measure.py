"""The loops that take time. Rounds of all stacks in a new order each, so that noise hits all alike.

A cost is what a call takes above the bare call of the same round: above the bare call that returns
for the happy path and for a refusal, above the bare call that raises for a failure, and above two
bare calls, one of which raises, for a retry.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from benchmarks.calls import Hiccup, answer, reject, trip, unreachable
from benchmarks.stack import Call, Setup, Stack

__all__ = ["Samples", "failing", "happy", "quietly", "refused", "retried", "throughput"]

Samples = dict[str, list[float]]
"""For each stack, one figure a round; the first is of round one for all of them."""

_REAL_CALL = 0.05  # seconds
_SAMPLE = 0.02  # seconds: a stack that costs much is sampled by fewer calls
_FEWEST = 20  # calls in a sample
_WELL = 4  # calls that succeed between two that are retried, lest a breaker opens

_Measure = Callable[[Call, int], Awaitable[float]]


async def happy(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Seconds of a call that returns."""
    ready = {stack.name: stack.protect(answer, Setup()) for stack in stacks}
    for call in ready.values():
        await _returning(call, 200)  # windows are full, and what is made on first use is there
    return await _in_rounds(ready, rounds, calls, _returning)


async def refused(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Seconds of a call that an open breaker refuses; of a bare call that returns."""
    ready = {}
    for stack in stacks:
        ready[stack.name] = stack.protect(unreachable if stack.refusal else answer, Setup())
        if stack.refusal:
            await trip(stack, ready[stack.name])
    return await _in_rounds(ready, rounds, calls, _raising(stack.refusal for stack in stacks))


async def failing(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Seconds of a call that raises what is not retried."""
    ready = {
        stack.name: stack.protect(reject, Setup())
        for stack in stacks
        if not stack.counts_all_errors
    }
    return await _in_rounds(ready, rounds, calls, _raising([ValueError]))


async def retried(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Seconds of a call whose first attempt fails and whose second succeeds at once."""
    ready: dict[str, Call] = {}
    hiccups: dict[Call, Hiccup] = {}
    for stack in stacks:
        hiccup = Hiccup()
        if stack.retries:
            call = stack.protect(hiccup.as_function(), Setup())
        elif stack.refusal is None:
            call = _by_hand(hiccup.as_function())  # what it costs to call twice
        else:
            continue
        ready[stack.name] = call
        hiccups[call] = hiccup

    async def measure(call: Call, number: int) -> float:
        hiccup, took = hiccups[call], 0.0
        for _ in range(number):
            for _ in range(_WELL):
                await call(1)
            hiccup.is_due = True
            began = perf_counter()
            await call(1)
            took += perf_counter() - began
        return took / number

    return await _in_rounds(ready, rounds, max(calls // (_WELL + 1), 1), measure)


async def throughput(stacks: Sequence[Stack], rounds: int, calls: int) -> Samples:
    """Calls a second, of so many calls at once that take 50 ms each."""

    async def wait(number: int) -> int:
        await asyncio.sleep(_REAL_CALL)
        return number

    ready = {stack.name: stack.protect(wait, Setup()) for stack in stacks}
    for call in ready.values():
        await call(1)
    return await _in_rounds(ready, rounds, calls, _at_once, is_burst=True)


def _by_hand(function: Call) -> Call:
    async def call(number: int) -> int:
        try:
            return await function(number)
        except ConnectionError:
            return await function(number)

    return call


async def _in_rounds(
    ready: dict[str, Call],
    rounds: int,
    calls: int,
    measure: _Measure,
    *,
    is_burst: bool = False,
) -> Samples:
    samples: Samples = {name: [] for name in ready}
    sizes = dict.fromkeys(ready, calls)
    if not is_burst and calls > _FEWEST:
        for name, call in ready.items():
            fitting = int(_SAMPLE / await measure(call, _FEWEST))
            sizes[name] = min(calls, max(fitting, _FEWEST))
    order = list(ready)
    with quietly():
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                await asyncio.sleep(0)  # the loop drops the timers that the last sample cancelled
                gc.collect()
                samples[name].append(await measure(ready[name], sizes[name]))
    return samples


async def _returning(call: Call, calls: int) -> float:
    began = perf_counter()
    for _ in range(calls):
        await call(1)
    return (perf_counter() - began) / calls


def _raising(errors: Iterable[type[Exception] | None]) -> _Measure:
    expected = tuple(error for error in errors if error is not None)

    async def measure(call: Call, calls: int) -> float:
        began = perf_counter()
        for _ in range(calls):
            try:  # noqa: SIM105 - suppress() costs as much as what is measured
                await call(1)
            except expected:
                pass
        return (perf_counter() - began) / calls

    return measure


async def _at_once(call: Call, calls: int) -> float:
    began = perf_counter()
    await asyncio.gather(*[call(1) for _ in range(calls)])
    return calls / (perf_counter() - began)


@contextmanager
def quietly() -> Iterator[None]:
    """Collect what is left over now; what then is there is never looked at again in this block."""
    frozen_before = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if not frozen_before:
            gc.unfreeze()
