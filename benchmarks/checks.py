"""Does each stack do what it says? No figure is taken of one that does nothing."""

from __future__ import annotations

import asyncio

from benchmarks.calls import answer, hang, outcome, reject, trip, unreachable
from benchmarks.stack import Call, Setup, Stack

__all__ = ["check"]


class _Counted:
    """A function that counts its calls, and how many of them were under way at once."""

    def __init__(self, function: Call) -> None:
        self._function = function
        self._under_way = 0
        self.calls = 0
        self.most = 0

    def as_function(self) -> Call:
        """A plain coroutine function: peers look for one."""

        async def counted(number: int) -> int:
            self.calls += 1
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            try:
                return await self._function(number)
            finally:
                self._under_way -= 1

        return counted


async def check(stack: Stack) -> None:
    """Raise AssertionError with the name of the stack and what it fails to do."""
    await _answers(stack)
    if not stack.counts_all_errors:
        await _leaves_other_errors_alone(stack)
    await _retries(stack)
    if stack.refusal is not None:
        await _refuses_when_open(stack)
    if stack.timeout is not None:
        await _ends_what_hangs(stack)
    if stack.has_bulkhead:
        await _has_bulkhead(stack)


def _require(stack: Stack, holds: object, promise: str) -> None:
    if not holds:
        raise AssertionError(f"{stack.name}: {promise}")


async def _answers(stack: Stack) -> None:
    _require(stack, await stack.protect(answer, Setup())(7) == 7, "gives back the result")


async def _leaves_other_errors_alone(stack: Stack) -> None:
    counted = _Counted(reject)
    call = stack.protect(counted.as_function(), Setup())
    outcomes = [await outcome(call) for _ in range(200)]
    _require(stack, all(type(each) is ValueError for each in outcomes), "raises a ValueError as is")
    _require(stack, counted.calls == 200, "neither retries nor counts a ValueError")


async def _retries(stack: Stack) -> None:
    counted = _Counted(unreachable)
    await outcome(stack.protect(counted.as_function(), Setup()))
    _require(stack, (counted.calls > 1) == stack.retries, "retries what is transient, if at all")


async def _refuses_when_open(stack: Stack) -> None:
    counted = _Counted(unreachable)
    call = stack.protect(counted.as_function(), Setup())
    await trip(stack, call)
    before = counted.calls
    _require(stack, type(await outcome(call)) is stack.refusal, "refuses with its own error")
    _require(stack, counted.calls == before, "calls nothing when it is open")


async def _ends_what_hangs(stack: Stack) -> None:
    call = stack.protect(hang, Setup(timeout=0.01))
    async with asyncio.timeout(5):
        ended = await outcome(call)
    _require(stack, type(ended) is stack.timeout, f"ends what hangs, not with {ended!r}")


async def _has_bulkhead(stack: Stack) -> None:
    async def brief(number: int) -> int:
        await asyncio.sleep(0.005)
        return number

    counted = _Counted(brief)
    call = stack.protect(counted.as_function(), Setup(max_concurrent=1))
    await asyncio.gather(*(outcome(call) for _ in range(3)))
    _require(stack, counted.most == 1, "limits how many calls are under way")
