"""On whose behalf LightRAG calls a dependency: a query fails at once, ingest waits."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from lightrag_resilience.guard import Guard
from lightrag_resilience.patience import patiently
from lightrag_resilience.priority import Priority, priority

__all__ = ["Request", "Work", "current_request", "current_work", "gated", "working"]


class Work:
    """A piece of work of LightRAG's, and what failed in it.

    Args:
        patience: Seconds that its calls wait for a dependency that is away; None fails at once.

    Attributes:
        failures: For each dependency whose last call failed, the error.
        last: The dependency that failed last, and its error; None before the first.
    """

    __slots__ = ("failures", "last", "patience")

    def __init__(self, patience: float | None = None) -> None:
        self.patience = patience
        self.failures: dict[str, Exception] = {}
        self.last: tuple[str, Exception] | None = None

    def failed(self, dependency: str, error: Exception) -> None:
        """A call of this work failed."""
        self.failures[dependency] = error
        self.last = dependency, error

    def succeeded(self, dependency: str) -> None:
        """A call of this work succeeded."""
        if self.failures:
            self.failures.pop(dependency, None)


class Request:
    """An HTTP request, and the dependency and error of the last guarded call that failed in it."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: tuple[str, Exception] | None = None


current_request: ContextVar[Request | None] = ContextVar(
    "lightrag_resilience_request", default=None
)
current_work: ContextVar[Work | None] = ContextVar("lightrag_resilience_work", default=None)


async def gated(guard: Guard, call: Callable[[], Awaitable[Any]]) -> Any:
    """Make a call for the present work: wait for the dependency, or be refused before any queue."""
    work = current_work.get()
    try:
        if work is not None and work.patience is not None:
            result = await patiently(guard, call, patience=work.patience)
        else:
            guard.refuse_if_open()
            result = await call()
    except Exception as error:
        if work is not None:
            work.failed(guard.name, error)
        if (request := current_request.get()) is not None:
            request.last = guard.name, error
        raise
    if work is not None:
        work.succeeded(guard.name)
    return result


def working(
    method: Callable[..., Awaitable[Any]], patience: float | None = None
) -> Callable[..., Any]:
    """A method all of whose calls are one piece of work, unless it is part of another.

    With patience they are made in the background: queries go before them.
    """

    @functools.wraps(method)
    async def as_work(*args: Any, **kwargs: Any) -> Any:
        if current_work.get() is not None:
            return await method(*args, **kwargs)
        token = current_work.set(Work(patience))
        level = Priority.INTERACTIVE if patience is None else Priority.BACKGROUND
        try:
            with priority(level):
                return await method(*args, **kwargs)
        finally:
            current_work.reset(token)

    return as_work
