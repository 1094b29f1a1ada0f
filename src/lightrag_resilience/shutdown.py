"""Graceful shutdown: work in flight ends, the rest is recorded, nothing is lost silently.

::

    async with Coordinator() as coordinator:
        await coordinator.run(serve())

When the process is asked to stop, new calls are rejected, waits that can be given up end, work in
flight is waited for, what is left is written to the journal and then cancelled, and clients are
closed in reverse order; all by one deadline. A second signal, a second or more after the first,
skips the waiting.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from .config.settings import Settings
from .draining.drain_run import DrainRun
from .draining.gate import allow_during_drain
from .draining.in_flight import Process
from .draining.journal import Journal, is_kind
from .draining.phases import Drain, Phase
from .draining.quiescence import WorkDetails
from .draining.report import DrainReport, Progress
from .draining.supervisor import supervisor
from .errors import PolicyError, ShuttingDownError
from .pipeline.registry import Guards, guards, resolve_guards
from .runtime.tasks import is_being_cancelled

__all__ = ["Coordinator", "DrainReport", "Progress", "configured_drain"]

T = TypeVar("T")
P = TypeVar("P", bound=Process)


class Coordinator:
    """Drains the work of one event loop. Inside another coordinator it joins that one's drain.

    Args:
        registry: The guards whose calls are waited for; those of the process by default.
        timeout: Seconds for the whole drain; None is ``RESILIENCE_SHUTDOWN_TIMEOUT``.
        cancel_grace: Of these, seconds for cancelled work to end.
        close_timeout: Of these, seconds for the callbacks of `on_close`.
        journal: The file for abandoned work; None is ``RESILIENCE_SHUTDOWN_JOURNAL``.
        handle_signals: Whether SIGTERM and SIGINT begin the drain, beside the handlers that are
            installed already. Where a server handles SIGQUIT, that skips the waiting at once. Only
            the main thread can handle signals; in another one the end of the block begins the
            drain.

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
        self._registry = registry = resolve_guards(registry)
        settings = registry.settings
        phases = configured_drain(settings, timeout, cancel_grace, close_timeout)
        path = settings.shutdown_journal if journal is None else journal
        self.journal = None if path is None else Journal(path)
        self._handle_signals = handle_signals
        self._drain = DrainRun(phases, registry.gate, registry.events, self.journal)
        self._loop: asyncio.AbstractEventLoop | None = None  # only of one that joins no other

    # ------------------------------------------------------------------ its life

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        root: Coordinator = self._registry.coordinators.setdefault(loop, self)
        if root is not self:
            self._drain = root._drain
            return self
        self._loop = loop
        supervisor().coordinators.add(self)
        if (ledger := supervisor().ledger) is not None and self.journal is not None:
            ledger.journal = str(self.journal.path.absolute())
        self._drain.open(handle_signals=self._handle_signals)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            await self.drain("the end of the program")
        finally:
            supervisor().coordinators.discard(self)
            self._registry.coordinators.pop(loop, None)
            self._drain.close()

    def reset_after_fork(self) -> None:
        """In a forked child: the drain, and everything in flight, belongs to the parent."""
        self._registry.coordinators.clear()
        self._drain.reset_after_fork()

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the drain begins: for loops that fetch new work."""
        return self._drain.stopping

    @property
    def is_draining(self) -> bool:
        """Whether the drain has begun."""
        return self._drain.is_draining

    @property
    def is_near_deadline(self) -> bool:
        """Whether even accepted work should start nothing new: it would hardly end in time."""
        return self._drain.phases.is_near_deadline(time.monotonic())

    @property
    def progress(self) -> Progress:
        """How far the drain has come; to be read on its event loop."""
        return self._drain.progress

    def listen(self) -> None:
        """Handle the signals again after another library, such as a server, set its handlers."""
        self._drain.listen()

    def accepts_new_work(self, seconds: float = 0.0) -> bool:
        """Whether new work is accepted: the drain has not begun, or less than `seconds` ago.

        A drain that skips the waiting accepts nothing.
        """
        phases = self._drain.phases
        return phases.phase is Phase.RUNNING or (
            phases.phase is Phase.DRAINING and phases.within_grace(time.monotonic(), seconds)
        )

    def keep_draining_for(self, seconds: float) -> None:
        """Keep draining for `seconds` after the drain began, although nothing is in flight.

        For a server that may still receive requests; 0 ends it.
        """
        self._drain.grace = seconds

    # ------------------------------------------------------------------ tracked work

    def track(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Wait for a task during the drain.

        The guarded calls of a task that was not begun in `run` are accepted during the drain only
        if it was begun in `allow_during_drain()`.
        """
        return self.track_as(task, "task", task.get_name())

    def track_as(
        self, task: asyncio.Task[T], kind: str, name: str, details: WorkDetails | None = None
    ) -> asyncio.Task[T]:
        """As `track`, with a kind and a name for the journal: neither may hold a secret.

        Raises:
            PolicyError: The kind is not one word of at most 30 letters, digits and ``_.:-``.
        """
        if not is_kind(kind):
            raise PolicyError(
                f"The kind of {name} is none that the journal knows: "
                "take one word of at most 30 letters, digits and _.:-"
            )
        self._drain.in_flight.add_task(task, kind, name, self._drain.on_cancelled, details)
        return task

    def track_process(self, process: P, name: str = "") -> P:
        """Wait for a child process during the drain; terminate, then kill one that does not end.

        Args:
            process: Of `subprocess`, `asyncio.create_subprocess_exec` or `multiprocessing`.
            name: For the journal; ``child`` and its pid by default.
        """
        self._drain.in_flight.add_child(process, name or f"child {process.pid}")
        return process

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a piece of work to its end, or until the drain gives it up.

        Raises:
            ShuttingDownError: The drain had begun before, or the work did not end in time.
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
            # Either the drain has cancelled the task, or the caller was cancelled.
            if task.cancelled() and self.is_draining and not is_being_cancelled():
                raise ShuttingDownError(name, None, "and this did not end in time") from None
            task.cancel()
            raise

    def on_close(
        self, callback: Callable[[], Awaitable[Any] | None], *, timeout: float | None = None
    ) -> None:
        """Call this once all work has ended; the callback added last is called first.

        Args:
            callback: Closes a client or flushes a storage; a coroutine function or a plain one.
            timeout: Seconds it may take; None is what is left of `close_timeout`.
        """
        self._drain.closers.append((callback, timeout))

    # ------------------------------------------------------------------ the drain

    def request(self, reason: str, *, skip_waiting: bool = False) -> None:
        """Request the drain; from any thread.

        Requests within one second are one, since a supervisor passes on a signal that the process
        itself received already. A later request gives up what is in flight; `skip_waiting` does so
        at once.
        """
        self._drain.request(reason, skip_waiting=skip_waiting)

    def begin(self, reason: str) -> None:
        """Begin the drain unless it has begun; on the coordinator's event loop."""
        self._drain.begin(reason)

    async def drain(self, reason: str = "a call of drain()") -> DrainReport:
        """Drain, and return the report; further calls return the same one.

        The drain takes at most its timeout, and goes on where its caller is cancelled.
        """
        return await self._drain.drain(reason)

    def record_abandoned(self, reason: str) -> None:
        """Write what is in flight to the journal at once: for a process that dies here."""
        self._drain.record_abandoned(reason)


def configured_drain(
    settings: Settings | None = None,
    timeout: float | None = None,
    cancel_grace: float | None = None,
    close_timeout: float | None = None,
) -> Drain:
    """A drain with times in seconds; None takes the setting of the process.

    Raises:
        PolicyError: The times do not add up.
    """
    settings = guards().settings if settings is None else settings
    drain = Drain(
        timeout=settings.shutdown_timeout if timeout is None else timeout,
        cancel_grace=settings.shutdown_cancel_grace if cancel_grace is None else cancel_grace,
        close_timeout=settings.shutdown_close_timeout if close_timeout is None else close_timeout,
    )
    drain.shrink_to(supervisor().grace_period)
    return drain
