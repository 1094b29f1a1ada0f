"""Bulkhead: limits concurrent calls; excess callers wait in a bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lightrag_resilience.config.policies import ConcurrencyPolicy
from lightrag_resilience.errors import BulkheadFullError

from .adaptive_limit import AdaptiveLimit
from .priority import Priority, current_priority
from .wait_queue import PriorityWaitQueue

__all__ = ["Bulkhead", "Occupancy"]

_RELEASES_KEPT = 32  # of which the times are kept
_FEWEST_RELEASES = 8  # to estimate the wait of a newcomer
_HOPELESS_WAIT = 2.0  # times the longest wait: above that, a caller is rejected at once


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The use of a bulkhead, and the cool-down of its dependency.

    Attributes:
        limit: Calls in flight that are allowed now; None without a limit.
        in_use: Calls in flight.
        waiting: Calls in the queue.
        cooldown_remaining: Seconds of the pause that the provider asked for.
    """

    limit: int | None = None
    in_use: int = 0
    waiting: int = 0
    cooldown_remaining: float = 0.0


class Bulkhead:
    """The permits for calls of one dependency on one event loop.

    Args:
        name: The dependency.
        policy: A policy whose `max_concurrent` is set.
        clock: Monotonic seconds.
    """

    def __init__(self, name: str, policy: ConcurrencyPolicy, clock: Callable[[], float]) -> None:
        assert policy.max_concurrent is not None  # noqa: S101 - else there is no bulkhead
        self._name = name
        self._policy = policy
        self._clock = clock
        self._limit = policy.max_concurrent
        self._in_use = 0
        self._waiters: PriorityWaitQueue[asyncio.Future[None]] = PriorityWaitQueue(policy.max_queue)
        self._release_times: deque[float] = deque(maxlen=_RELEASES_KEPT)
        self._adaptive: AdaptiveLimit | None = None
        if policy.adaptive:
            self._adaptive = AdaptiveLimit(
                smallest=policy.min_concurrent,
                largest=policy.max_concurrent,
                goal=policy.latency_goal,
            )
            self._limit = self._adaptive.value

    @property
    def occupancy(self) -> Occupancy:
        """The permits in use, and the queue, now."""
        return Occupancy(self._limit, self._in_use, len(self._waiters))

    @property
    def has_permit(self) -> bool:
        """Whether a call can have a permit without waiting."""
        return self._in_use < self._limit and not self._waiters

    def take_permit(self) -> None:
        """Take a permit of which `has_permit` said that it is free."""
        self._in_use += 1
        if self._adaptive is not None and self._in_use >= self._limit:
            self._adaptive.reached()

    async def acquire(self, longest: float) -> bool:
        """Take a permit, waiting at most `longest` seconds for it. True if there was a wait.

        Interactive calls go before background ones; in a full queue they evict the newest of
        these. A call is rejected at once if permits are released so slowly that its wait would be
        twice as long as it may be.

        Raises:
            BulkheadFullError: The queue is full, or no permit was released in time.
        """
        if self.has_permit:
            self.take_permit()
            return False
        longest = min(longest, self._policy.max_wait)
        level = current_priority.get()
        permit = self._enqueue(level, longest)
        try:
            async with asyncio.timeout(longest):
                await permit
        except TimeoutError:
            if _is_granted(permit):
                return True
            raise self._rejection(f"after {longest:g} s in the queue", level) from None
        except BaseException:
            if _is_granted(permit):
                self.release()  # granted and cancelled at once: pass the permit on
            raise
        finally:
            self._waiters.remove(permit, level)
        return True

    def release(self) -> None:
        """Return a permit; the first waiter gets it."""
        self._in_use -= 1
        if self._waiters:
            self._release_times.append(self._clock())
            self._grant()

    def record_outcome(self, started: float, duration: float, *, is_overloaded: bool) -> None:
        """How a call that was sent at `started` ended, for a limit that adapts."""
        if (adaptive := self._adaptive) is None:
            return
        now = self._clock()
        if is_overloaded:
            adaptive.on_overload(started=started, now=now)
        else:
            adaptive.on_success(started=started, duration=duration, now=now)
        self._limit = adaptive.value
        self._grant()

    def _grant(self) -> None:
        while self._in_use < self._limit and (permit := self._waiters.pop()) is not None:
            if not permit.done():  # else its caller was cancelled or timed out
                self.take_permit()
                permit.set_result(None)

    def _enqueue(self, level: Priority, longest: float) -> asyncio.Future[None]:
        if not self._waiters:
            self._release_times.clear()  # of an earlier queue, at another pace
        if not self._waiters.accepts(level):
            raise self._rejection(f"and {len(self._waiters)} more are waiting", level)
        wait = self._expected_wait(level)
        if wait is not None and wait > longest * _HOPELESS_WAIT:
            raise self._rejection(f"and the queue takes {wait:.1f} s", level)
        permit = asyncio.get_running_loop().create_future()
        evicted = self._waiters.push(permit, level)
        if evicted is not None and not evicted.done():
            reason = "and an interactive call took its position in the queue"
            evicted.set_exception(self._rejection(reason, Priority.BACKGROUND))
        return permit

    def _expected_wait(self, level: Priority) -> float | None:
        """Seconds a newcomer would wait, by the pace of the last releases; None if too few."""
        if len(self._release_times) < _FEWEST_RELEASES:
            return None
        pace = (self._clock() - self._release_times[0]) / len(self._release_times)
        return pace * (self._waiters.position_of(level) + 1)

    def _rejection(self, reason: str, level: Priority) -> BulkheadFullError:
        return BulkheadFullError(self._name, self._expected_wait(level), reason)


def _is_granted(permit: asyncio.Future[None]) -> bool:
    return permit.done() and not permit.cancelled() and permit.exception() is None
