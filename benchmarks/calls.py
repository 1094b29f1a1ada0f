"""The functions that the stacks protect."""

from __future__ import annotations

import asyncio

from benchmarks.stack import Call, Stack

__all__ = ["Hiccup", "answer", "hang", "outcome", "reject", "trip", "unreachable"]


async def answer(number: int) -> int:
    return number


async def reject(number: int) -> int:
    """An error that no stack retries or counts."""
    raise ValueError(number)


async def unreachable(number: int) -> int:
    """An error that every stack retries and counts."""
    raise ConnectionError(number)


async def hang(number: int) -> int:
    await asyncio.sleep(60)
    return number


class Hiccup:
    """A function that fails once on command, and works again."""

    def __init__(self) -> None:
        self.is_due = False

    def as_function(self) -> Call:
        """A plain coroutine function: peers look for one."""

        async def hiccup(number: int) -> int:
            if self.is_due:
                self.is_due = False
                raise ConnectionError(number)
            return number

        return hiccup


async def trip(stack: Stack, call: Call) -> None:
    """Let a protected `unreachable` fail until its breaker refuses."""
    for _ in range(20):
        if isinstance(await outcome(call), stack.refusal or ()):
            return
    raise AssertionError(f"{stack.name}: the breaker never opened")


async def outcome(call: Call) -> object:
    """What a call returns or raises."""
    try:
        return await call(1)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        return error
