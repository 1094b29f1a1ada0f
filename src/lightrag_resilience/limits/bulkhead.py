"""How many calls at once: places, and a line before them that has an end."""

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

_REMEMBERED = 32  # places that came free
_ENOUGH = 8  # of them, to tell how long a newcomer would wait
_SURELY = 2.0  # a wait of so many times what a call has left is no use to it


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How the places are taken.

    Attributes:
        limit: Calls at once, for now; None where there is no limit.
        in_use: Calls under way.
        waiting: Calls in line.
        cooldown_remaining: Seconds for which nothing goes, as the provider asked.
    """

    limit: int | None = None
    in_use: int = 0
    waiting: int = 0
    cooldown_remaining: float = 0.0


class Bulkhead:
    """The places for calls of one dependency on one event loop.

    Args:
        name: The dependency.
        policy: A policy whose `max_concurrent` is set.
        clock: Monotonic seconds.
    """

    def __init__(self, name: str, policy: ConcurrencyPolicy, clock: Callable[[], float]) -> None:
        assert policy.max_concurrent is not None  # noqa: S101 - there are no places otherwise
        self._name = name
        self._policy = policy
        self._clock = clock
        self._limit = policy.max_concurrent
        self._in_use = 0
        self._waiters: PriorityWaitQueue[asyncio.Future[None]] = PriorityWaitQueue(policy.max_queue)
        self._release_times: deque[float] = deque(maxlen=_REMEMBERED)
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
        """How they are taken now."""
        return Occupancy(self._limit, self._in_use, len(self._waiters))

    @property
    def has_permit(self) -> bool:
        """Whether a call can have a place at once."""
        return self._in_use < self._limit and not self._waiters

    def try_acquire(self) -> None:
        """Have a place; there must be room."""
        self._in_use += 1
        if self._adaptive is not None and self._in_use >= self._limit:
            self._adaptive.reached()

    async def acquire(self, longest: float) -> bool:
        """Take a place, waiting at most `longest` seconds for it. True if there was a wait.

        Interactive calls go before background ones, and where the line is full take the place of
        the youngest of these. A call is refused at once where places come free so slowly that the
        wait would be twice as long as it may be.

        Raises:
            BulkheadFullError: The line is full, or no place came free in time.
        """
        if self.has_permit:
            self.try_acquire()
            return False
        longest = min(longest, self._policy.max_wait)
        level = current_priority.get()
        place = self._enqueue(level, longest)
        try:
            async with asyncio.timeout(longest):
                await place
        except TimeoutError:
            if _is_granted(place):
                return True
            raise self._rejection(f"for {longest:g} s", level) from None
        except BaseException:
            if _is_granted(place):
                self.release()  # to the next in line
            raise
        finally:
            self._waiters.remove(place, level)
        return True

    def release(self) -> None:
        """Give a place back; who is next gets it."""
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
        while self._in_use < self._limit and (place := self._waiters.pop()) is not None:
            if not place.done():  # else its caller leaves
                self.try_acquire()
                place.set_result(None)

    def _enqueue(self, level: Priority, longest: float) -> asyncio.Future[None]:
        if not self._waiters:
            self._release_times.clear()  # what it tells of is over
        if not self._waiters.accepts(level):
            raise self._rejection(f"and {len(self._waiters)} more are waiting", level)
        wait = self._expected_wait(level)
        if wait is not None and wait > longest * _SURELY:
            raise self._rejection(f"and the line takes {wait:.1f} s", level)
        place = asyncio.get_running_loop().create_future()
        shed = self._waiters.push(place, level)
        if shed is not None and not shed.done():
            reason = "and one that somebody waits for took its place in line"
            shed.set_exception(self._rejection(reason, Priority.BACKGROUND))
        return place

    def _expected_wait(self, level: Priority) -> float | None:
        """Seconds a newcomer would wait, by the pace at which places came free lately."""
        if len(self._release_times) < _ENOUGH:
            return None
        pace = (self._clock() - self._release_times[0]) / len(self._release_times)
        return pace * (self._waiters.position_of(level) + 1)

    def _rejection(self, reason: str, level: Priority) -> BulkheadFullError:
        return BulkheadFullError(self._name, self._expected_wait(level), reason)


def _is_granted(place: asyncio.Future[None]) -> bool:
    return place.done() and not place.cancelled() and place.exception() is None
