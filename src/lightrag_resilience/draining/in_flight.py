"""The register of work in flight: tracked tasks, requests, child processes, guarded calls."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from lightrag_resilience.text import LONGEST_TEXT, printable

from .gate import DrainGate
from .journal import AbandonedWork
from .quiescence import WorkDetails
from .supervisor import supervisor
from .worker_ledger import LedgerEntry

__all__ = [
    "InFlight",
    "Process",
    "TrackedWork",
    "cancel",
    "counted",
    "details_of",
    "has_ended",
    "in_words",
    "processes_of",
    "records_of",
    "task_of",
]

_PURE = frozenset({"llm", "vlm", "embedding", "rerank", "parser"})
"""Families of dependencies whose calls have no side effect."""


class Process(Protocol):
    """A child process, of `subprocess`, `asyncio` or `multiprocessing`."""

    @property
    def pid(self) -> int | None:
        """Its process id."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


class TrackedWork:
    """A task or a child process that the drain waits for.

    Attributes:
        name: As in the journal; made printable, since a client may have chosen it.
        kind: As in the journal: ``task``, ``request``, ``child``, or another word.
        task: The task to cancel; None for a child.
        process: The child to end; None for a task.
        details: Whether it is parked, and records of its parts; None of other work.
        began: Monotonic seconds.
        id: The id of its record in the journal.
    """

    __slots__ = ("began", "details", "id", "kind", "ledger", "name", "process", "slot", "task")

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        task: asyncio.Task[Any] | None = None,
        process: Any = None,
        details: WorkDetails | None = None,
    ) -> None:
        self.name = name = printable(name, LONGEST_TEXT)
        self.kind = kind
        self.task = task
        self.process = process
        self.details = details
        self.began = time.monotonic()
        self.id = uuid.uuid4().hex
        self.ledger = supervisor().ledger
        if self.ledger is not None:
            self.slot = self.ledger.add(LedgerEntry(self.id, name, kind, time.time()))

    def remove_from_ledger(self) -> None:
        """Let the master not record it, should this process die."""
        if self.ledger is not None:
            self.ledger.remove(self.slot)
            self.ledger = None


class InFlight:
    """Everything that one drain waits for.

    Args:
        gate: The gate of the guards whose calls are waited for.
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
        on_cancelled: Callable[[TrackedWork], None],
        details: WorkDetails | None = None,
    ) -> None:
        """Wait for a task; `on_cancelled` is called if it is cancelled."""
        if task in self._tasks:
            return
        self._tasks[task] = work = TrackedWork(name, kind, task=task, details=details)

        def forget(done: asyncio.Task[Any]) -> None:
            del self._tasks[done]
            if done.cancelled():
                on_cancelled(work)
            work.remove_from_ledger()

        task.add_done_callback(forget)

    def add_child(self, process: Any, name: str) -> None:
        """Wait for a child process."""
        self._forget_ended_children()
        self._children.append(TrackedWork(name, "child", process=process))

    def now(self, but: Iterable[asyncio.Task[Any]] = ()) -> list[Any]:
        """Tracked work, and guarded calls outside of it; without the tasks in `but`."""
        self._forget_ended_children()
        excluded = set(but)
        running = dict(self._gate.running)
        calls = [
            call
            for call in running
            if not _is_part(call, running) and task_of(call) not in self._tasks
        ]
        tasks = [work for task, work in list(self._tasks.items()) if task not in excluded]
        return [*tasks, *self._children, *calls]

    def _forget_ended_children(self) -> None:
        for work in list(self._children):
            if has_ended(work.process):
                self._children.remove(work)
                work.remove_from_ledger()


def _is_part(call: Any, running: Mapping[Any, object]) -> bool:
    """Whether a call is made inside of another one that is under way."""
    around = call.parent
    while around is not None and around not in running:  # a deadline, or a call that has ended
        around = around.parent
    return around is not None


def records_of(work: Any, reason: str) -> tuple[AbandonedWork, ...]:
    """The journal's records of tracked work and its parts, or of a guarded call."""
    record = _record_of(work, reason)
    details = details_of(work)
    return (record,) if details is None else tuple(details.records(record))


def details_of(work: Any) -> WorkDetails | None:
    """The details of tracked work; None where it has none."""
    return work.details if isinstance(work, TrackedWork) else None


def _record_of(work: Any, reason: str) -> AbandonedWork:
    seconds = time.monotonic() - work.began
    if isinstance(work, TrackedWork):
        return AbandonedWork(
            work.name,
            work.kind,
            "outcome_unknown",
            seconds,
            reason,
            started=work.began,
            id=work.id,
        )
    return AbandonedWork(
        work.name,
        "stream" if work.is_streaming else "call",
        work.stage,
        seconds,
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


def processes_of(works: Iterable[Any]) -> list[Any]:
    """The child processes among them."""
    children = (work for work in works if isinstance(work, TrackedWork))
    return [child.process for child in children if child.process is not None]


def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task of this event loop or of another one."""
    loop = task.get_loop()
    if loop is asyncio.get_running_loop():
        task.cancel()
    elif not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)


def has_ended(process: Any) -> bool:
    """Whether a child process has ended; of `subprocess`, `asyncio` or `multiprocessing`."""
    if hasattr(process, "poll"):
        return process.poll() is not None
    if hasattr(process, "is_alive"):
        try:
            return not process.is_alive()
        except ValueError:  # it was closed, as only an ended process can be
            return True
    return process.returncode is not None


def counted(works: Iterable[Any]) -> dict[str, int]:
    """The number of works by name."""
    return dict(sorted(Counter(printable(work.name, LONGEST_TEXT) for work in works).items()))


def in_words(works: Iterable[Any]) -> str:
    """The same for the log: ``2 of llm.openai, 1 of ingest``."""
    return ", ".join(f"{count} of {name}" for name, count in counted(works).items()) or "nothing"
