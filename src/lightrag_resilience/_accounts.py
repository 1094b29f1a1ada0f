"""What there is to say of a piece of work in flight, in the log and in the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .journal import Abandoned

__all__ = ["Account", "RequestUnderWay", "is_held", "name_of", "records_of", "task_of", "tell_of"]

_PURE = frozenset({"llm", "vlm", "embedding", "rerank"})
"""Families of dependencies that change nothing when they are called."""


class Account(Protocol):
    """What a tracked task knows of itself."""

    @property
    def is_held(self) -> bool:
        """Whether it will not go on in this process, so that nobody need wait for it."""
        ...

    def records(self, task: Abandoned) -> Iterable[Abandoned]:
        """The record of the task, with all that is known, and those of its parts."""
        ...


@dataclass(eq=False, slots=True)
class RequestUnderWay:
    """A request that is served, among the calls in flight of a gate.

    Attributes:
        scope: ASGI's, in which the application's router may note the route.
        task: What serves it.
        began: Monotonic seconds.
    """

    scope: Mapping[str, Any]
    task: asyncio.Task[Any] | None
    began: float
    parent: None = None
    is_streaming: bool = False

    @property
    def name(self) -> str:
        """Its method and route; of an unknown one the beginning, for a path may hold secrets."""
        route = getattr(self.scope.get("route"), "path", None)
        path = route or "/" + str(self.scope["path"]).lstrip("/").partition("/")[0]
        return f"{self.scope.get('method', '')} {path}".lstrip()


_accounts: WeakKeyDictionary[asyncio.Task[Any], Account] = WeakKeyDictionary()


def tell_of(task: asyncio.Task[Any], account: Account) -> None:
    """Let a task have an account of itself."""
    _accounts[task] = account


def is_held(work: Any) -> bool:
    """Whether a piece of work waits for nothing but its end."""
    account = _accounts.get(work) if isinstance(work, asyncio.Task) else None
    return account is not None and account.is_held


def name_of(work: Any) -> str:
    """What to call a piece of work: a task, a guarded call or a request."""
    name: str = work.get_name() if isinstance(work, asyncio.Task) else work.name
    return name


def task_of(work: Any) -> asyncio.Task[Any] | None:
    """The task that does it."""
    if isinstance(work, asyncio.Task):
        return work
    task: asyncio.Task[Any] | None = getattr(work, "task", None)
    return task


def records_of(work: Any, signal: str, began: float | None = None) -> Sequence[Abandoned]:
    """What the journal says of a piece of work, and of its parts.

    Args:
        work: A task, a guarded call or a request.
        signal: What told the process to stop.
        began: Monotonic seconds at which a task began.
    """
    now = time.monotonic()
    if isinstance(work, asyncio.Task):
        began = now if began is None else began
        lasted = now - began
        record = Abandoned(
            work.get_name(), "task", "outcome_unknown", lasted, signal, started=began
        )
        account = _accounts.get(work)
        return (record,) if account is None else tuple(account.records(record))
    kind, state = _kind_and_state(work)
    record = Abandoned(
        work.name,
        kind,
        state,
        now - work.began,
        signal,
        attempt=getattr(work, "attempt", 1),
        effect=_effect_of(work),
        started=work.began,
    )
    return (record,)


def _kind_and_state(work: Any) -> tuple[str, str]:
    if isinstance(work, RequestUnderWay):
        return "request", "in_flight"
    kind = "stream" if work.is_streaming else "call"
    if hasattr(work, "started"):
        return kind, "in_flight"
    return kind, "queued" if hasattr(work, "admission") else "not_sent"


def _effect_of(work: Any) -> str:
    if isinstance(work, RequestUnderWay):
        return "unknown"
    if work.name.partition(".")[0] in _PURE:
        return "pure"
    idempotent = getattr(work, "idempotent", None)
    if idempotent is None:
        return "unknown"
    return "idempotent_write" if idempotent else "unsafe_write"
