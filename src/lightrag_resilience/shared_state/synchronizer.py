"""Shares breakers and limits through Redis, from a thread that begins with the first call.

Whatever goes wrong there, no call notices. A forked child begins anew, with a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.policies import BreakerPolicy, LimitPolicy
from lightrag_resilience.config.redis_url import redis_location
from lightrag_resilience.events import Events
from lightrag_resilience.runtime.fork_safety import reset_in_children

from .connection_status import ConnectionStatus, SharedObjects
from .messages import Override
from .overrides import Overrides
from .shared_breaker import FlushPriority, SharedBreaker
from .shared_rate_limiter import SharedRateLimiter
from .sync_thread import SyncThread

__all__ = ["Synchronizer"]

_log = logging.getLogger("lightrag_resilience")

_START_AGAIN = 1.0  # seconds between two starts of the thread, where the first ends or fails


class Synchronizer:
    """What shared breakers talk to. No method waits, but `close`.

    Args:
        url: Where Redis is.
        prefix: Of its keys and channels.
        override: Told, in the thread, which variables have other values in all workers.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        override: Callable[[Mapping[str, Override]], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prefix = prefix
        self.link = ConnectionStatus(clock, redis_location(url))
        self._url = url
        self._clock = clock
        self._members = SharedObjects({}, {}, Overrides(prefix, override))
        # Reentrant: the garbage collector may end an abandoned call while the lock is held.
        self._lock = threading.RLock()
        self._worker: SyncThread | None = None
        self._start_at = -math.inf
        reset_in_children(self)

    @property
    def connected(self) -> bool:
        """Whether Redis takes what is sent."""
        return self.link.is_up

    def workers(self) -> int:
        """How many there were when Redis was there last, this one included."""
        return self.link.workers

    @property
    def round_trip(self) -> float:
        """Seconds to Redis and back."""
        return self.link.round_trip

    def breaker(self, name: str, policy: BreakerPolicy, events: Events) -> SharedBreaker:
        """A new breaker of this process that shares its state."""
        made = SharedBreaker(name, policy, self.prefix, self, events=events, clock=self._clock)
        self._members.breakers[name] = made
        if self._worker is not None:
            self._run(SyncThread.add, made)
        elif _is_in_loop():
            self.begin()  # it is in use, and no longer only imported by what may fork
        return made

    def limit(self, name: str, policy: LimitPolicy) -> SharedRateLimiter:
        """New limits of this process that share what all workers may send."""
        made = SharedRateLimiter(name, policy, self.prefix, self, clock=self._clock)
        self._members.limits[name] = made
        return made

    def begin(self) -> None:
        """Calls are about to be made: in this process, this is the time for a thread."""
        self._running()

    def close(self) -> None:
        """Send what is due, and end the thread and its connections; later use begins anew."""
        with self._lock:
            worker, self._worker = self._worker, None
            self._start_at = -math.inf
        if worker is not None:
            worker.stop()

    # ------------------------------------------------------------------ for breakers

    def schedule_report(self, breaker: SharedBreaker, when: FlushPriority) -> None:
        """A breaker has something to report."""
        self._run(SyncThread.schedule_report, breaker, when)

    def request_probe(self, breaker: SharedBreaker, answered: Callable[[], None]) -> None:
        """Ask for a probe's place; `answered` is called, in the thread, when the breaker knows."""
        self._run(SyncThread.request_probe, breaker, answered)

    def return_probe(self, breaker: SharedBreaker, token: str) -> None:
        """A probe ended without a verdict."""
        self._run(SyncThread.return_probe, breaker, token)

    def force_state(
        self, breaker: SharedBreaker, state: State, reason: str, *, open_for: float = 0.0
    ) -> None:
        """A change by hand, for the whole cluster."""
        self._run(SyncThread.force_state, breaker, state, reason, open_for)

    # ------------------------------------------------------------------ for limits

    def reserve(self, limit: SharedRateLimiter) -> None:
        """Callers wait for turns."""
        self._run(SyncThread.reserve, limit)

    def cool_down(self, name: str, seconds: float) -> None:
        """A provider asked to wait."""
        self._run(SyncThread.cool_down, name, seconds)

    # ------------------------------------------------------------------ the thread

    def _run(self, method: Callable[..., None], *arguments: Any) -> None:
        worker = self._running()
        if worker is not None:
            with contextlib.suppress(RuntimeError):  # its loop was closed this moment
                worker.loop.call_soon_threadsafe(method, worker, *arguments)

    def _running(self) -> SyncThread | None:
        """The thread's side; None while the system has no thread or no file for one."""
        worker = self._worker
        if worker is not None and worker.is_alive:
            return worker
        with self._lock:
            if self._worker is None or not self._worker.is_alive:
                self._start()
            worker = self._worker
        return worker if worker is not None and worker.is_alive else None

    def _start(self) -> None:
        if self._clock() < self._start_at:
            return
        self._start_at = self._clock() + _START_AGAIN
        if self._worker is not None:
            _log.error("The thread that shares breakers through Redis ended; it begins again")
        try:
            worker = SyncThread(self._url, self.prefix, self._members, self.link)
            worker.start()
        except (OSError, RuntimeError) as error:
            self.link.mark_down(error)
        else:
            self._worker = worker

    def reset_after_fork(self) -> None:
        """In a child process: the thread, its locks and its connections are the parent's."""
        self._lock = threading.RLock()
        self._worker = None
        self._start_at = -math.inf
        self.link.is_up = False
        for breaker in self._members.breakers.values():
            breaker.reset_after_fork()
        for limit in self._members.limits.values():
            limit.reset_after_fork()


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
