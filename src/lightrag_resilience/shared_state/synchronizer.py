"""Shares breakers and limits through Redis, from a thread that starts with the first call.

No error in the thread reaches a call. A forked child starts a thread of its own.
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
from lightrag_resilience.runtime.process_state import process

from .connection_status import ConnectionStatus, SharedObjects
from .messages import Override
from .overrides import Overrides
from .shared_breaker import FlushPriority, SharedBreaker
from .shared_rate_limiter import SharedRateLimiter
from .sync_thread import SyncThread

__all__ = ["Synchronizer"]

_log = logging.getLogger("lightrag_resilience")

_RESTART_AFTER = 1.0  # seconds between two starts of a thread that fails or ends


class Synchronizer:
    """The side of the sync thread that breakers and limits use. Only `close` waits.

    Args:
        url: Of Redis.
        prefix: Of keys and channels.
        override: Called in the thread with all overrides whenever they change.
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
        self._shared = SharedObjects({}, {}, Overrides(prefix, override))
        # Reentrant: garbage collection under the lock may end an abandoned call, which locks.
        self._lock = threading.RLock()
        self._worker: SyncThread | None = None
        self._start_at = -math.inf
        process.reset_in_children(self)

    @property
    def connected(self) -> bool:
        """Whether Redis accepts commands."""
        return self.link.is_up

    def workers(self) -> int:
        """The last known number of workers, this one included."""
        return self.link.workers

    @property
    def round_trip(self) -> float:
        """Seconds for a command to Redis."""
        return self.link.round_trip

    def breaker(self, name: str, policy: BreakerPolicy, events: Events) -> SharedBreaker:
        """Make a breaker that shares its state."""
        made = SharedBreaker(name, policy, self.prefix, self, events=events, clock=self._clock)
        self._shared.breakers[name] = made
        if self._worker is not None:
            self._run(SyncThread.add, made)
        elif _is_in_loop():
            self.begin()  # in a running loop: no import in a master process that forks later
        return made

    def limit(self, name: str, policy: LimitPolicy) -> SharedRateLimiter:
        """Make rate limits that all workers share."""
        made = SharedRateLimiter(name, policy, self.prefix, self, clock=self._clock)
        self._shared.limits[name] = made
        return made

    def begin(self) -> None:
        """Calls are about to be made, so this process may have a thread: start it."""
        self._running()

    def close(self) -> None:
        """Send what is due, and end the thread and its connections; a later use starts another."""
        with self._lock:
            worker, self._worker = self._worker, None
            self._start_at = -math.inf
        if worker is not None:
            worker.stop()

    # ------------------------------------------------------------------ for breakers

    def schedule_report(self, breaker: SharedBreaker, when: FlushPriority) -> None:
        """Send a breaker's report, as soon as `when` says."""
        self._run(SyncThread.schedule_report, breaker, when)

    def request_probe(
        self, breaker: SharedBreaker, lease: float, answered: Callable[[], None]
    ) -> None:
        """Request a probe's permit; `answered` is called in the thread after the answer."""
        self._run(SyncThread.request_probe, breaker, lease, answered)

    def return_probe(self, breaker: SharedBreaker, token: str) -> None:
        """Release a probe's permit."""
        self._run(SyncThread.return_probe, breaker, token)

    def force_state(
        self, breaker: SharedBreaker, state: State, reason: str, *, open_for: float = 0.0
    ) -> None:
        """Force a breaker's state in all workers."""
        self._run(SyncThread.force_state, breaker, state, reason, open_for)

    # ------------------------------------------------------------------ for limits

    def reserve(self, limit: SharedRateLimiter) -> None:
        """Reserve turns for the waiting callers."""
        self._run(SyncThread.reserve, limit)

    def cool_down(self, name: str, seconds: float) -> None:
        """Publish a cool-down to all workers."""
        self._run(SyncThread.cool_down, name, seconds)

    # ------------------------------------------------------------------ the thread

    def _run(self, method: Callable[..., None], *arguments: Any) -> None:
        worker = self._running()
        if worker is not None:
            with contextlib.suppress(RuntimeError):  # its loop has just been closed
                worker.loop.call_soon_threadsafe(method, worker, *arguments)

    def _running(self) -> SyncThread | None:
        """The running thread; None while the system cannot start one."""
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
        self._start_at = self._clock() + _RESTART_AFTER
        if self._worker is not None:
            _log.error("The thread that shares breakers through Redis ended; it starts again")
        try:
            worker = SyncThread(self._url, self.prefix, self._shared, self.link)
            worker.start()
        except (OSError, RuntimeError) as error:
            self.link.mark_down(error)
        else:
            self._worker = worker

    def reset_after_fork(self) -> None:
        """In a child process: drop the thread with its locks and connections, the parent's."""
        self._lock = threading.RLock()
        self._worker = None
        self._start_at = -math.inf
        self.link.is_up = False
        for breaker in self._shared.breakers.values():
            breaker.reset_after_fork()
        for limit in self._shared.limits.values():
            limit.reset_after_fork()


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
