"""Functions to decorate."""

from __future__ import annotations

import concurrent.futures
from collections.abc import AsyncIterable, Callable
from contextvars import ContextVar
from typing import Any

from lightrag_resilience import (
    Policy,
)

WAIT = 10.0  # seconds, a bound that is never reached
POLICY = Policy.llm(attempts=3)
role = ContextVar("role", default="none")


async def no_sleep(seconds: float) -> None:
    """Waits no time."""


class Flaky:
    """Fails so many times before it is right."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def answer(self, word: str) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError(f"failure {self.calls}")
        return word.upper()


def in_thread(function: Callable[[], Any]) -> Any:
    """What a function gives in a thread where no event loop runs."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(WAIT)


async def drain(stream: AsyncIterable[Any], into: list[Any] | None = None) -> list[Any]:
    items = [] if into is None else into
    async for item in stream:
        items.append(item)
    return items
