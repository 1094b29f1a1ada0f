"""The register of what is in flight: tracked tasks, requests, child processes, guarded calls."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from lightrag_resilience.text import LONGEST_TEXT, printable

from .gate import DrainGate
from .journal import AbandonedWork
from .quiescence import details_of
from .supervisor import supervisor
from .worker_ledger import LedgerEntry

__all__ = [
    "InFlight",
    "Process",
    "TrackedWork",
    "cancel",
    "counted",
    "has_ended",
    "in_words",
    "records_of",
    "task_of",
]

_PURE = frozenset({"llm", "vlm", "embedding", "rerank"})
"""Families of dependencies that change nothing when they are called."""


class Process(Protocol):
    """A child process, of `subprocess`, `asyncio` or `multiprocessing`."""

    @property
    def pid(self) -> int | None:
        """Its number."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


class TrackedWork:
    """A task or a child process that is waited for.

    Attributes:
        name: As in the journal; printable, as a client or a library may have chosen it.
        kind: ``task``, ``request`` or ``child``.
        task: What is cancelled; None for a child.
        process: What is ended; None for a task.
        began: Monotonic seconds.
        id: That of its record in the journal.
    """

    __slots__ = ("began", "id", "kind", "ledger", "line", "name", "process", "task")

    def __init__(
        self, name: str, kind: str, *, task: asyncio.Task[Any] | None = None, process: Any = None
    ) -> None:
        self.name = name = printable(name, LONGEST_TEXT)
        self.kind = kind
        self.task = task
        self.process = process
        self.began = time.monotonic()
        self.id = uuid.uuid4().hex
        self.ledger = supervisor.ledger
        if self.ledger is not None:
            self.line = self.ledger.add(LedgerEntry(self.id, name, kind, time.time()))

    def remove_from_ledger(self) -> None:
        """Whoever looks after this process need not know of it any longer."""
        if self.ledger is not None:
            self.ledger.remove(self.line)
            self.ledger = None


class InFlight:
    """What one coordinator waits for.

    Args:
        gate: That of the guards whose calls are waited for.
    """

    def __init__(self, gate: DrainGate) -> None:
        self._gate = gate
        self._tasks: dict[asyncio.Task[Any], TrackedWork] = {}
        self._children: list[TrackedWork] = []

    def add_task(
        self,
        task: asyncio.Task[Any],
        kind: str,
        name: str,
        is_cut_off: Callable[[TrackedWork], None],
    ) -> None:
        """Wait for a task; `is_cut_off` is told where it is cancelled."""
        if task in self._tasks:
            return
        self._tasks[task] = work = TrackedWork(name, kind, task=task)

        def forget(done: asyncio.Task[Any]) -> None:
            del self._tasks[done]
            if done.cancelled():
                is_cut_off(work)
            work.remove_from_ledger()

        task.add_done_callback(forget)

    def add_child(self, process: Any, name: str) -> None:
        """Wait for a process."""
        self._forget_ended_children()
        self._children.append(TrackedWork(name, "child", process=process))

    def now(self, but: Iterable[asyncio.Task[Any]] = ()) -> list[Any]:
        """Tracked work, and guarded calls that are no part of it; without some tasks."""
        self._forget_ended_children()
        left_out = set(but)
        calls = [
            call
            for call in list(self._gate.running)
            if call.parent is None and task_of(call) not in self._tasks
        ]
        tasks = [work for task, work in list(self._tasks.items()) if task not in left_out]
        return [*tasks, *self._children, *calls]

    def _forget_ended_children(self) -> None:
        for work in list(self._children):
            if has_ended(work.process):
                self._children.remove(work)
                work.remove_from_ledger()


def records_of(work: Any, reason: str) -> tuple[AbandonedWork, ...]:
    """What the journal gets of a piece of work, and of its parts, or of a guarded call."""
    record = _record_of(work, reason)
    account = details_of(work.task) if isinstance(work, TrackedWork) else None
    return (record,) if account is None else tuple(account.records(record))


def _record_of(work: Any, reason: str) -> AbandonedWork:
    lasted = time.monotonic() - work.began
    if isinstance(work, TrackedWork):
        return AbandonedWork(
            work.name,
            work.kind,
            "outcome_unknown",
            lasted,
            reason,
            started=work.began,
            id=work.id,
        )
    return AbandonedWork(
        work.name,
        "stream" if work.is_streaming else "call",
        work.stage,
        lasted,
        reason,
        attempt=work.attempt,
        effect=_effect_of(work),
        started=work.began,
    )


def _effect_of(call: Any) -> str:
    if call.name.partition(".")[0] in _PURE:
        return "pure"
    if call.idempotent is None:
        return "unknown"
    return "idempotent_write" if call.idempotent else "unsafe_write"


def task_of(work: Any) -> asyncio.Task[Any] | None:
    """The task to cancel."""
    task: asyncio.Task[Any] | None
    task = work.task if isinstance(work, TrackedWork) else work.running_task
    return task


def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task of any event loop, from any of them."""
    loop = task.get_loop()
    if loop is asyncio.get_running_loop():
        task.cancel()
    elif not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)


def has_ended(process: Any) -> bool:
    """Whether a process of subprocess, asyncio or multiprocessing has ended."""
    if hasattr(process, "poll"):
        return process.poll() is not None
    if hasattr(process, "is_alive"):
        try:
            return not process.is_alive()
        except ValueError:  # it was closed, which only what has ended can be
            return True
    return process.returncode is not None


def counted(left: Iterable[Any]) -> dict[str, int]:
    """How much is in flight, by name."""
    return dict(sorted(Counter(printable(work.name, LONGEST_TEXT) for work in left).items()))


def in_words(left: Iterable[Any]) -> str:
    """The same for people."""
    return ", ".join(f"{count} of {name}" for name, count in counted(left).items()) or "nothing"
