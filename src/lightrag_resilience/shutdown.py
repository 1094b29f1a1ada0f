"""The coordinator of a shutdown: what is in flight ends, the rest is written down, nothing is lost.

::

    async with Coordinator() as coordinator:
        await coordinator.run(serve())

When the process is told to stop: new calls are refused, waits that can be given up end, what is in
flight is waited for, what is left is written to the journal and then cancelled, and clients are
closed in reverse order; all by one deadline. A second signal waits for nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from ._gate import admitted
from ._phases import Drain, Phase
from ._signals import hear_signals, signals_to_hear
from .errors import ShuttingDownError
from .journal import Abandoned, Journal
from .registry import Guards, guards

__all__ = ["Coordinator", "Progress", "Report"]

T = TypeVar("T")

_log = logging.getLogger("lightrag_resilience")

_LOOK = 0.05  # seconds between two looks at what is in flight
_TELL = 1.0  # seconds between two lines of the log
_AGAIN = 0.1  # seconds between two cancellations of a task that goes on


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the work that was in flight when the drain began.

    Attributes:
        drained: How much of it ended by itself.
        abandoned: What was cancelled, as the journal has it.
        stuck: Names of tasks that did not end although they were cancelled.
        failed_to_close: Names of callbacks that failed, or took too long.
        seconds: How long all of it took.
    """

    drained: int
    abandoned: tuple[Abandoned, ...]
    stuck: tuple[str, ...]
    failed_to_close: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drain has come.

    Attributes:
        phase: Where it is; ``running`` before it begins.
        reason: Who told the process to stop.
        left: Seconds to the end of this phase; infinity before it begins.
        in_flight: How much of what is left there is, by name.
    """

    phase: Phase
    reason: str
    left: float
    in_flight: dict[str, int]


class Coordinator:
    """Ends one event loop's work in order. Inside another one it joins that one.

    Args:
        registry: The guards whose calls are waited for; those of the process by default.
        timeout: Seconds for everything; None is ``RESILIENCE_SHUTDOWN_TIMEOUT``.
        cancel_grace: Of these, for what is cancelled to end.
        close_timeout: Of these, for what `on_close` was given.
        journal: The file for what was given up; None is ``RESILIENCE_SHUTDOWN_JOURNAL``.
        hears_signals: Whether SIGTERM and SIGINT begin the drain, beside the handlers that are
            there already.

    Raises:
        PolicyError: The times do not add up.
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
    """

    def __init__(  # noqa: PLR0913 - all by name
        self,
        *,
        registry: Guards | None = None,
        timeout: float | None = None,
        cancel_grace: float | None = None,
        close_timeout: float | None = None,
        journal: str | os.PathLike[str] | None = None,
        hears_signals: bool = True,
    ) -> None:
        self._registry = guards() if registry is None else registry
        settings = self._registry.settings
        self._drain = Drain(
            timeout=settings.shutdown_timeout if timeout is None else timeout,
            cancel_grace=settings.shutdown_cancel_grace if cancel_grace is None else cancel_grace,
            close_timeout=(
                settings.shutdown_close_timeout if close_timeout is None else close_timeout
            ),
        )
        path = settings.shutdown_journal if journal is None else journal
        self.journal = None if path is None else Journal(path)
        self.stopping = asyncio.Event()
        """Set when the process is told to stop: for loops that take up new work."""
        self._hears_signals = hears_signals
        self._signals: list[str] = []
        self._reason = ""
        self._tasks: dict[asyncio.Task[Any], float] = {}
        self._callers: set[asyncio.Task[Any]] = set()
        self._closers: list[tuple[Callable[[], Any], float | None]] = []
        self._ended: asyncio.Future[Report] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = contextlib.ExitStack()
        self._root = self

    # ------------------------------------------------------------------ its life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._root = self._registry.coordinators.setdefault(self._loop, self)
        if self._root is self and self._hears_signals:
            self._stack.enter_context(hear_signals(signals_to_hear(), self._told_by_signal))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._root is not self:
            return
        try:
            await self.drain("the end of the program")
        finally:
            self._stack.close()
            assert self._loop is not None  # noqa: S101 - it was entered
            self._registry.coordinators.pop(self._loop, None)
            self._registry.gate.open()

    @property
    def is_draining(self) -> bool:
        """Whether the process was told to stop."""
        return self._root._drain.phase is not Phase.RUNNING  # noqa: SLF001 - of its own kind

    @property
    def progress(self) -> Progress:
        """How far the drain has come, for those who watch it; on its own loop."""
        root = self._root
        left, drain = root._in_flight(), root._drain  # noqa: SLF001 - of its own kind
        reason, now = root._reason, time.monotonic()  # noqa: SLF001 - of its own kind
        return Progress(drain.phase, reason, drain.left(now), _counted(left))

    # ------------------------------------------------------------------ what it looks after

    def track(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Wait for a task when the process is told to stop; its guarded calls go on until then.

        The calls of a task that was begun outside of `run` are let in only if it was begun in
        `admitted()`.
        """
        if self._root is not self:
            return self._root.track(task)
        self._tasks[task] = time.monotonic()
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do a piece of work to its end, or to the end of the drain.

        Raises:
            ShuttingDownError: The process was told to stop before it began, or it did not end in
                time.
        """
        name = getattr(work, "__qualname__", "work")
        if self.is_draining:
            work.close()
            raise ShuttingDownError(name)
        with admitted():
            task = self.track(asyncio.ensure_future(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and self.is_draining and not (caller and caller.cancelling()):
                raise ShuttingDownError(name, None, "and this did not end in time") from None
            task.cancel()
            raise

    def on_close(
        self, callback: Callable[[], Awaitable[Any] | None], *, timeout: float | None = None
    ) -> None:
        """Call this when all work has ended, the last given first.

        Args:
            callback: Closes a client, flushes a storage; a coroutine function or a plain one.
            timeout: Seconds it may take; None is what is left of the budget for closing.
        """
        self._root._closers.append((callback, timeout))  # noqa: SLF001 - of its own kind

    # ------------------------------------------------------------------ the drain

    def request(self, reason: str) -> None:
        """Tell the process to stop; from any thread. A second time waits for nothing any more."""
        loop = self._root._loop  # noqa: SLF001 - of its own kind
        assert loop is not None  # noqa: S101 - it was entered
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._root._told, reason)  # noqa: SLF001 - of its own kind

    def _told_by_signal(self, name: str) -> None:
        self.request(name)

    def _told(self, reason: str) -> None:
        """Somebody wants the end; who says so twice is in a hurry."""
        self._signals.append(reason)
        if len(self._signals) > 1:
            self._drain.hurry(time.monotonic())
        self._begin(reason)

    def _begin(self, reason: str) -> None:
        if self.is_draining:
            return
        self._reason = reason
        self._drain.begin(time.monotonic())
        self._registry.gate.close()
        self.stopping.set()
        _log.info("Told to stop by %s: %s in flight", reason, len(self._in_flight()))
        self._ended = asyncio.ensure_future(self._all_phases())

    async def drain(self, reason: str = "a call of drain()") -> Report:
        """Go through all phases; who calls it later gets the same report.

        It lasts to its end even where the caller is cancelled, and at most its timeout.
        """
        if self._root is not self:
            return await self._root.drain(reason)
        if (caller := asyncio.current_task()) is not None:
            self._callers.add(caller)  # nobody waits for who waits for the end
        self._begin(reason)
        assert self._ended is not None  # noqa: S101 - it began
        return await asyncio.shield(self._ended)

    async def _all_phases(self) -> Report:
        began = time.monotonic()
        found = len(self._in_flight())
        await self._wait_for_what_is_in_flight()
        abandoned = await self._give_up()
        failed = await self._close_all()
        stuck = tuple(task.get_name() for task in self._tasks if not task.done())
        report = Report(
            drained=max(found - len(abandoned), 0),
            abandoned=abandoned,
            stuck=stuck,
            failed_to_close=failed,
            seconds=time.monotonic() - began,
        )
        level = logging.WARNING if abandoned or stuck or failed else logging.INFO
        _log.log(
            level,
            "Drained in %.1f s: %d ended, %d given up, %d stuck",
            report.seconds,
            report.drained,
            len(abandoned),
            len(stuck),
        )
        return report

    async def _wait_for_what_is_in_flight(self) -> None:
        told_at = time.monotonic()
        while True:
            now = time.monotonic()
            left = self._in_flight()
            if self._drain.step(now, len(left)) is not Phase.DRAINING:
                return
            if now - told_at >= _TELL:
                told_at = now
                wait = self._drain.left(now)
                _log.info("Waiting %.0f s more for %s", wait, _in_words(left))
            await asyncio.sleep(min(_LOOK, self._drain.left(now)))

    async def _give_up(self) -> tuple[Abandoned, ...]:
        """Write down what is left, and then cancel it, again and again in the time for that."""
        left = self._in_flight()
        if not left:
            return ()
        records = tuple(self._abandoned(work) for work in left)
        if self.journal is not None:
            try:
                await asyncio.to_thread(self.journal.write, records)
            except OSError as error:
                reason = type(error).__name__
                _log.error("The journal %s cannot be written: %s", self.journal.path, reason)
        _log.warning("Giving up %s", _in_words(left))
        tasks = {task for work in left if (task := _task_of(work)) is not None} - self._callers
        while tasks and self._drain.step(time.monotonic(), len(tasks)) is Phase.CANCELLING:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_AGAIN)
        return records

    async def _close_all(self) -> tuple[str, ...]:
        failed = []
        for callback, timeout in reversed(self._closers):
            left = self._drain.deadline - time.monotonic()
            limit = left if timeout is None else min(timeout, left)
            try:
                async with asyncio.timeout(max(limit, 0.0)):
                    result = callback()
                    if inspect.isawaitable(result):
                        await result
            except Exception as error:  # noqa: BLE001 - the others are to be closed as well
                name = getattr(callback, "__qualname__", repr(callback))
                failed.append(name)
                _log.warning("%s could not be closed: %s", name, type(error).__name__)
        return tuple(failed)

    def _in_flight(self) -> list[Any]:
        """Tracked tasks, and guarded calls of this loop that are no part of these."""
        tasks = [task for task in self._tasks if not task.done() and task not in self._callers]
        calls = [
            call
            for call in list(self._registry.gate.running)
            if call.parent is None and _task_of(call) not in self._tasks
        ]
        return [*tasks, *calls]

    def _abandoned(self, work: Any) -> Abandoned:
        now = time.monotonic()
        if isinstance(work, asyncio.Task):
            lasted = now - self._tasks.get(work, now)
            return Abandoned(work.get_name(), "task", "outcome_unknown", lasted, self._reason)
        kind = "stream" if work.is_streaming else "call"
        state = "in_flight" if hasattr(work, "started") else "not_sent"
        return Abandoned(work.name, kind, state, now - work.began, self._reason)


def _task_of(work: Any) -> asyncio.Task[Any] | None:
    if isinstance(work, asyncio.Task):
        return work
    task: asyncio.Task[Any] | None = getattr(work, "task", None)
    return task


def _counted(left: list[Any]) -> dict[str, int]:
    names: dict[str, int] = {}
    for work in left:
        name = work.get_name() if isinstance(work, asyncio.Task) else work.name
        names[name] = names.get(name, 0) + 1
    return dict(sorted(names.items()))


def _in_words(left: list[Any]) -> str:
    return ", ".join(f"{count} of {name}" for name, count in _counted(left).items()) or "nothing"
