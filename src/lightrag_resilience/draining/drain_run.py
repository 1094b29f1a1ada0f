"""One drain of an event loop, from the first request to stop to the report."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lightrag_resilience.events import Events
from lightrag_resilience.text import LONGEST_TEXT, printable

from .abandoned_work import AbandonedWorkLog
from .gate import DrainGate
from .in_flight import (
    InFlight,
    TrackedWork,
    counted,
    details_of,
    in_words,
    processes_of,
    task_of,
)
from .journal import Journal
from .phases import Drain, Phase
from .quiescence import QuiescenceDetector
from .report import DrainReport, Progress, publish_progress
from .signals import ONE_REQUEST, SignalListener, shutdown_signals
from .supervisor import repeats_sigterm
from .termination import close_all, end_all, end_children, exit_despite_threads

__all__ = ["DrainRun"]

_log = logging.getLogger("lightrag_resilience")

_POLL = 0.05  # seconds between two polls of what is in flight
_LOG_EVERY = 1.0  # seconds between two log lines


class DrainRun:
    """The state of a drain. `Coordinator` is its public face; joined coordinators share one.

    Args:
        phases: Its times.
        gate: Closed when the drain begins; its calls are waited for.
        events: Where progress and the result are published.
        journal: Where abandoned work is recorded; None keeps it for the report alone.

    Attributes:
        stopping: Set when the drain begins.
        in_flight: The tasks and child processes that the drain waits for.
        closers: What to call at the end, each with its timeout.
        grace: Seconds after the request for which it drains although nothing is in flight.
    """

    def __init__(
        self, phases: Drain, gate: DrainGate, events: Events, journal: Journal | None
    ) -> None:
        self.phases = phases
        self.phases.on_change = functools.partial(publish_progress, events)
        self.stopping = asyncio.Event()
        self.in_flight = InFlight(gate)
        self.closers: list[tuple[Callable[[], Awaitable[Any] | None], float | None]] = []
        self.grace = 0.0
        self._gate = gate
        self._events = events
        self._abandoned = AbandonedWorkLog(journal)
        self._callers: set[asyncio.Task[Any]] = set()
        self._requested_at: float | None = None
        self._reason = ""
        self._result: asyncio.Task[DrainReport] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.Context()
        self._signals: SignalListener | None = None

    # ------------------------------------------------------------------ its life

    def open(self, *, handle_signals: bool) -> None:
        """Bind it to the running event loop and, in the main thread, to the stop signals."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._gate.reset_if_forked()
        if handle_signals:
            self._signals = SignalListener(shutdown_signals(), self._on_signal)
            self._signals.listen()

    def close(self) -> None:
        """Stop handling signals and accept calls again."""
        if self._signals is not None:
            self._signals.stop()
        self._gate.open()

    def listen(self) -> None:
        """Handle the signals again after a server has replaced the handlers."""
        if self._signals is not None:
            self._signals.listen()

    def reset_after_fork(self) -> None:
        """In a forked child: everything in flight belongs to the parent."""
        if self._signals is not None:
            self._signals.reset_after_fork()
        self.phases.reset()
        self.in_flight = InFlight(self._gate)
        self._gate.reset_if_forked()

    @property
    def is_draining(self) -> bool:
        """Whether the drain has begun."""
        return self.phases.phase is not Phase.RUNNING

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        now = time.monotonic()
        remaining = self.phases.remaining(now)
        return Progress(self.phases.phase, self._reason, remaining, counted(self._remaining()))

    # ------------------------------------------------------------------ requests to stop

    def request(self, reason: str, *, skip_waiting: bool) -> None:
        """Request the drain; from any thread and from a signal handler."""
        assert self._loop is not None  # noqa: S101 - open() has set it
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(
                self._on_request, reason, time.monotonic(), skip_waiting
            )

    def _on_signal(self, name: str) -> None:
        # Servers use SIGQUIT for a stop that waits for nothing.
        self.request(name, skip_waiting=name == "SIGQUIT")

    def _on_request(self, reason: str, at: float, skip_waiting: bool) -> None:  # noqa: FBT001 - of `request`
        if self._requested_at is None:
            self._requested_at = at
        self.begin(reason)
        is_second = at - self._requested_at >= ONE_REQUEST
        if skip_waiting or (is_second and not (reason == "SIGTERM" and repeats_sigterm())):
            self.phases.skip_waiting(time.monotonic())

    def begin(self, reason: str) -> None:
        """Begin the drain unless it has begun; on its event loop."""
        if self.is_draining:
            return
        self._reason = printable(reason, LONGEST_TEXT)
        self.phases.begin(time.monotonic())
        self._gate.close()
        self.stopping.set()
        # Not in the context of the code that a signal interrupted: that may hold a lock.
        self._result = asyncio.get_running_loop().create_task(
            self._run_phases(), context=self._context
        )

    async def drain(self, reason: str) -> DrainReport:
        """Begin the drain unless it has begun, and wait for its report."""
        # The drain must not wait for the task that waits for the drain.
        if (caller := asyncio.current_task()) is not None:
            self._callers.add(caller)
        self.begin(reason)
        assert self._result is not None  # noqa: S101 - it has begun
        return await asyncio.shield(self._result)

    # ------------------------------------------------------------------ the phases

    async def _run_phases(self) -> DrainReport:
        try:
            return await self._drain_all()
        except asyncio.CancelledError:  # the event loop ends: a server skips the waiting
            self.record_abandoned(self._reason)
            end_children(processes_of(self._remaining()))
            raise

    async def _drain_all(self) -> DrainReport:
        began = time.monotonic()
        found = len(self._remaining())
        _log.info("Draining, requested by %s: %d in flight", self._reason, found)
        if cut_off := self._abandoned.recently_cancelled():
            await self._record_in_time(cut_off)
        await self._wait_for_work()
        stuck = await self._cancel_remaining()
        if stuck and self._requested_at is not None:
            exit_despite_threads(self.phases.deadline)
        failed = await close_all(reversed(self.closers), self.phases.deadline)
        abandoned = self._abandoned.records
        report = DrainReport(
            # A record with a parent is a part of that one's work and was not counted by itself.
            drained=max(found + len(cut_off) - sum(not each.parent for each in abandoned), 0),
            abandoned=abandoned,
            stuck=tuple(stuck),
            failed_to_close=failed,
            seconds=time.monotonic() - began,
        )
        report.log(self._events)
        return report

    async def _wait_for_work(self) -> None:
        logged_at = time.monotonic()
        quiescence = QuiescenceDetector()
        while True:
            now = time.monotonic()
            works = self._remaining()
            if quiescence.is_quiescent(map(details_of, works)):
                self.phases.skip_waiting(now)
            count = len(works) + self.phases.within_grace(now, self.grace)
            if self.phases.step(now, count) is not Phase.DRAINING:
                return
            if works and now - logged_at >= _LOG_EVERY:
                logged_at = now
                remaining = self.phases.remaining(now)
                _log.info("Waiting %.0f s more for %s", remaining, in_words(works))
            await asyncio.sleep(min(_POLL, self.phases.remaining(now)))

    async def _cancel_remaining(self) -> list[str]:
        """Record what is left, then cancel it. Returns the names of what does not end."""
        if works := self._remaining():
            await self._record_in_time(works)
            _log.warning("Giving up %s", in_words(works))
        tasks = {task for work in works if (task := task_of(work)) is not None} - self._callers
        has_time = lambda n: self.phases.step(time.monotonic(), n) is Phase.CANCELLING  # noqa: E731
        return await end_all(tasks, processes_of(works), has_time)

    def _remaining(self) -> list[Any]:
        return self.in_flight.now(but=self._callers)

    # ------------------------------------------------------------------ the journal

    def record_abandoned(self, reason: str) -> None:
        """Record what is in flight, and wait for the disk: for a process that dies here."""
        self._abandoned.record(self._remaining(), self._reason or reason)

    def on_cancelled(self, work: TrackedWork) -> None:
        """Record tracked work that was cancelled before its time, such as by its server."""
        if work in self._abandoned:
            return
        if self.is_draining:
            self._abandoned.record([work], self._reason)
        else:
            self._abandoned.remember_cancelled(work)

    async def _record_in_time(self, works: Sequence[Any]) -> None:
        has_time = lambda: self.phases.remaining(time.monotonic()) > 0  # noqa: E731
        await self._abandoned.record_in_time(works, self._reason, has_time)
