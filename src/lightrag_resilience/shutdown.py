"""The coordinator of a shutdown: what is in flight ends, the rest is written down, nothing is lost.

::

    async with Coordinator() as coordinator:
        await coordinator.run(serve())

When the process is told to stop: new calls are refused, waits that can be given up end, what is in
flight is waited for, what is left is written to the journal and then cancelled, and clients are
closed in reverse order; all by one deadline. A second signal, at least a second after the first,
waits for nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from .config.settings import Settings
from .draining.abandoned_work import AbandonedWorkLog
from .draining.gate import allow_during_drain
from .draining.in_flight import InFlight, Process, TrackedWork, counted, in_words, task_of
from .draining.journal import Journal, is_kind
from .draining.phases import Drain, Phase
from .draining.process import add_root, discard_root
from .draining.quiescence import QuiescenceDetector
from .draining.report import DrainReport, Progress, log_phase
from .draining.signals import ONE_REQUEST, SignalListener, shutdown_signals
from .draining.supervisor import repeats_sigterm, supervisor
from .draining.termination import close_all, end_all, end_children, exit_despite_threads
from .errors import PolicyError, ShuttingDownError
from .pipeline.registry import Guards, guards, resolve_guards
from .runtime.tasks import is_being_cancelled
from .text import LONGEST_TEXT, printable

__all__ = ["Coordinator", "DrainReport", "Progress", "configured_drain"]

T = TypeVar("T")
P = TypeVar("P", bound=Process)

_log = logging.getLogger("lightrag_resilience")

_LOOK = 0.05  # seconds between two looks at what is in flight
_TELL = 1.0  # seconds between two lines of the log


class Coordinator:
    """Ends one event loop's work in order. Inside another one it joins that one.

    Args:
        registry: The guards whose calls are waited for; those of the process by default.
        timeout: Seconds for everything; None is ``RESILIENCE_SHUTDOWN_TIMEOUT``.
        cancel_grace: Of these, for what is cancelled to end.
        close_timeout: Of these, for what `on_close` was given.
        journal: The file for what was given up; None is ``RESILIENCE_SHUTDOWN_JOURNAL``.
        handle_signals: Whether SIGTERM and SIGINT begin the drain, beside the handlers that are
            there already. Where a server hears SIGQUIT, that is both of two signals at once. Only
            the main thread can; in another one the end of the block begins the drain.

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
        handle_signals: bool = True,
    ) -> None:
        self._registry = resolve_guards(registry)
        settings = self._registry.settings
        self._drain = configured_drain(settings, timeout, cancel_grace, close_timeout)
        path = settings.shutdown_journal if journal is None else journal
        self.journal = None if path is None else Journal(path)
        self._accounts = AbandonedWorkLog(self.journal)
        self.stopping = asyncio.Event()
        """Set when the process is told to stop: for loops that take up new work."""
        self._linger = 0.0
        self._handles_signals = handle_signals
        self._drain.changed = functools.partial(log_phase, self._registry.events)
        self._requested_at: float | None = None
        self._reason = ""
        self._in_flight = InFlight(self._registry.gate)
        self._callers: set[asyncio.Task[Any]] = set()
        self._closers: list[tuple[Callable[[], Any], float | None]] = []
        self._ended: asyncio.Future[DrainReport] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.Context()
        self._signals: SignalListener | None = None
        self._root = self

    # ------------------------------------------------------------------ its life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._root = self._registry.coordinators.setdefault(self._loop, self)
        self.stopping = self._root.stopping
        if self._root is self:
            add_root(self)
            self._registry.gate.reset_if_forked()
            if supervisor.ledger is not None and self.journal is not None:
                supervisor.ledger.journal = str(self.journal.path.absolute())
        if self._root is self and self._handles_signals:
            self._signals = SignalListener(shutdown_signals(), self._requested_by_signal)
            self._signals.listen()
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
            if self._signals is not None:
                self._signals.stop()
            discard_root(self)
            assert self._loop is not None  # noqa: S101 - it was entered
            self._registry.coordinators.pop(self._loop, None)
            self._registry.gate.open()

    @property
    def is_draining(self) -> bool:
        """Whether the process was told to stop."""
        return self._root._drain.phase is not Phase.RUNNING  # noqa: SLF001 - another Coordinator

    @property
    def is_near_deadline(self) -> bool:
        """Whether to begin nothing more, even of what was let in: it would hardly end in time."""
        return self._root._drain.is_late(time.monotonic())  # noqa: SLF001 - another Coordinator

    def listen(self) -> None:
        """Hear signals again, where others have set handlers since: a server, late."""
        if (ears := self._root._signals) is not None:  # noqa: SLF001 - another Coordinator
            ears.listen()

    def accepts_new_work(self, seconds: float = 0.0) -> bool:
        """Whether new work gets in: nobody said stop, or only once and less than so long ago."""
        drain = self._root._drain  # noqa: SLF001 - another Coordinator
        return drain.phase is Phase.RUNNING or (
            drain.phase is Phase.DRAINING and drain.within_grace(time.monotonic(), seconds)
        )

    def keep_draining_for(self, seconds: float) -> None:
        """Go on draining so long after the signal although nothing is in flight.

        For a server through which something may still come, until it says otherwise with 0.
        """
        self._root._linger = seconds  # noqa: SLF001 - another Coordinator

    @property
    def progress(self) -> Progress:
        """How far the drain has come, for those who watch it; on its own loop."""
        root = self._root
        left, drain = root._left(), root._drain  # noqa: SLF001 - another Coordinator
        reason, now = root._reason, time.monotonic()  # noqa: SLF001 - another Coordinator
        return Progress(drain.phase, reason, drain.remaining(now), counted(left))

    # ------------------------------------------------------------------ what it looks after

    def track(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Wait for a task when the process is told to stop; its guarded calls go on until then.

        The calls of a task that was begun outside of `run` are let in only if it was begun in
        `allow_during_drain()`.
        """
        return self.track_as(task, "task", task.get_name())

    def track_as(self, task: asyncio.Task[T], kind: str, name: str) -> asyncio.Task[T]:
        """As `track`, with words of your own for the journal: nothing secret, no text.

        Raises:
            PolicyError: The kind is no word of at most 30 letters, digits and ``_.:-``.
        """
        if not is_kind(kind):
            raise PolicyError(
                f"The kind of {name} is none that the journal knows: "
                "take one word of at most 30 letters, digits and _.:-"
            )
        root = self._root
        root._in_flight.add_task(task, kind, name, root._is_cut_off)  # noqa: SLF001 - another Coordinator
        return task

    def track_process(self, process: P, name: str = "") -> P:
        """Wait for a child process when this one is told to stop; what does not end is ended.

        Args:
            process: Of `subprocess`, `asyncio.create_subprocess_exec` or `multiprocessing`.
            name: For the journal; its number by default.
        """
        name = name or f"child {process.pid}"
        self._root._in_flight.add_child(process, name)  # noqa: SLF001 - another Coordinator
        return process

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
        with allow_during_drain():
            task = self.track(asyncio.ensure_future(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self.is_draining and not is_being_cancelled():
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
        self._root._closers.append((callback, timeout))  # noqa: SLF001 - another Coordinator

    # ------------------------------------------------------------------ the drain

    def request(self, reason: str, *, skip_waiting: bool = False) -> None:
        """Request the process to stop; from any thread.

        Requests within one second are one: a supervisor passes on what the process got already. A
        later one gives up what is in flight, as `skip_waiting` does at once.
        """
        root, at = self._root, time.monotonic()
        loop = root._loop  # noqa: SLF001 - another Coordinator
        assert loop is not None  # noqa: S101 - it was entered
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(root._requested, reason, at, skip_waiting)  # noqa: SLF001 - another Coordinator

    def _requested_by_signal(self, name: str) -> None:
        self.request(name, skip_waiting=name == "SIGQUIT")  # servers' signal for a fast end

    def _requested(self, reason: str, at: float, skip_waiting: bool) -> None:  # noqa: FBT001 - of `request`
        if self._requested_at is None:
            self._requested_at = at
        self._begin(reason)
        is_later = at - self._requested_at >= ONE_REQUEST
        if skip_waiting or (is_later and not (reason == "SIGTERM" and repeats_sigterm())):
            self._drain.skip_waiting(time.monotonic())

    def begin(self, reason: str) -> None:
        """Begin the drain unless it has begun; on the coordinator's loop."""
        self._root._begin(reason)  # noqa: SLF001 - another Coordinator

    def _begin(self, reason: str) -> None:
        if self.is_draining:
            return
        self._reason = printable(reason, LONGEST_TEXT)
        self._drain.begin(time.monotonic())
        self._registry.gate.close()
        self.stopping.set()
        # Not in the context of whatever the signal interrupted, such as the holder of a lock.
        phases = self._all_phases()
        self._ended = asyncio.get_running_loop().create_task(phases, context=self._context)

    async def drain(self, reason: str = "a call of drain()") -> DrainReport:
        """Go through all phases; who calls it later gets the same report.

        It lasts to its end even where the caller is cancelled, and at most its timeout.
        """
        if self._root is not self:
            return await self._root.drain(reason)
        if (caller := asyncio.current_task()) is not None:
            self._callers.add(caller)  # the drain does not wait for what waits for it
        self._begin(reason)
        assert self._ended is not None  # noqa: S101 - it began
        return await asyncio.shield(self._ended)

    async def _all_phases(self) -> DrainReport:
        try:
            return await self._go_through_phases()
        except asyncio.CancelledError:  # the loop itself ends, as where a server skips the waiting
            self.record_abandoned(self._reason)
            end_children(work.process for work in self._left() if _is_child(work))
            raise

    async def _go_through_phases(self) -> DrainReport:
        began = time.monotonic()
        found = len(self._left())
        _log.info("Told to stop by %s: %d in flight", self._reason, found)
        if cut_off := self._accounts.recently_cancelled():
            await self._record_in_time(cut_off)
        await self._wait_for_what_is_in_flight()
        stuck = await self._give_up()
        if stuck and self._requested_at is not None:
            exit_despite_threads(self._drain.deadline)
        failed = await close_all(reversed(self._closers), self._drain.deadline)
        abandoned = self._accounts.records
        report = DrainReport(
            drained=max(found + len(cut_off) - sum(not each.parent for each in abandoned), 0),
            abandoned=abandoned,
            stuck=tuple(stuck),
            failed_to_close=failed,
            seconds=time.monotonic() - began,
        )
        report.log(self._registry.events)
        return report

    async def _wait_for_what_is_in_flight(self) -> None:
        told_at = time.monotonic()
        quiet = QuiescenceDetector()
        while True:
            now = time.monotonic()
            left = self._left()
            if quiet.is_quiescent(map(task_of, left)):
                self._drain.skip_waiting(now)
            count = len(left) + self._drain.within_grace(now, self._linger)
            if self._drain.step(now, count) is not Phase.DRAINING:
                return
            if left and now - told_at >= _TELL:
                told_at = now
                _log.info("Waiting %.0f s more for %s", self._drain.remaining(now), in_words(left))
            await asyncio.sleep(min(_LOOK, self._drain.remaining(now)))

    async def _give_up(self) -> list[str]:
        """Write down what is left, and then end it in the time for that."""
        if left := self._left():
            await self._record_in_time(left)
            _log.warning("Giving up %s", in_words(left))
        tasks = {task for work in left if (task := task_of(work)) is not None} - self._callers
        children = [work.process for work in left if _is_child(work)]
        is_time = lambda n: self._drain.step(time.monotonic(), n) is Phase.CANCELLING  # noqa: E731
        return await end_all(tasks, children, is_time)

    # ------------------------------------------------------------------ the journal

    def record_abandoned(self, reason: str) -> None:
        """Write to the journal what is in flight, at once: for a process that dies here."""
        self._accounts.record(self._left(), self._reason or reason)

    async def _record_in_time(self, works: list[Any]) -> None:
        has_time = lambda: self._drain.remaining(time.monotonic()) > 0  # noqa: E731
        await self._accounts.record_in_time(works, self._reason, has_time)

    def _is_cut_off(self, work: TrackedWork) -> None:
        """It was cancelled before its time, such as by a server that skips the waiting."""
        if work in self._accounts:
            return
        if self.is_draining:
            self._accounts.record([work], self._reason)
        else:
            self._accounts.remember_cancelled(work)

    def _left(self) -> list[Any]:
        return self._in_flight.now(but=self._callers)

    def forget(self) -> None:
        """This is a child that was forked: all of it is the parent's business."""
        self._drain.reset()
        self._in_flight = InFlight(self._registry.gate)
        self._registry.coordinators.clear()
        self._registry.gate.reset_if_forked()


def _is_child(work: Any) -> bool:
    return isinstance(work, TrackedWork) and work.process is not None


def configured_drain(
    settings: Settings | None = None,
    timeout: float | None = None,
    cancel_grace: float | None = None,
    close_timeout: float | None = None,
) -> Drain:
    """A drain with times in seconds, where None is what the settings of the process say."""
    settings = guards().settings if settings is None else settings
    drain = Drain(
        timeout=settings.shutdown_timeout if timeout is None else timeout,
        cancel_grace=settings.shutdown_cancel_grace if cancel_grace is None else cancel_grace,
        close_timeout=settings.shutdown_close_timeout if close_timeout is None else close_timeout,
    )
    drain.shrink_to(supervisor.grace_period)
    return drain
