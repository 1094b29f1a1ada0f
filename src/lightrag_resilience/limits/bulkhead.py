"""How many calls at once: places, and a line before them that has an end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lightrag_resilience.config.policies import ConcurrencyPolicy
from lightrag_resilience.errors import QueueFullError

from .adaptive_limit import AdaptiveLimit
from .priority import Priority, current_priority
from .wait_queue import Waiters

__all__ = ["Occupancy", "Places"]

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
        standstill: Seconds for which nothing goes, as the provider asked.
    """

    limit: int | None = None
    in_use: int = 0
    waiting: int = 0
    standstill: float = 0.0


class Places:
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
        self._waiters: Waiters[asyncio.Future[None]] = Waiters(policy.max_queue)
        self._came_free: deque[float] = deque(maxlen=_REMEMBERED)
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
    def has_room(self) -> bool:
        """Whether a call can have a place at once."""
        return self._in_use < self._limit and not self._waiters

    def take(self) -> None:
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
            QueueFullError: The line is full, or no place came free in time.
        """
        if self.has_room:
            self.take()
            return False
        longest = min(longest, self._policy.max_wait)
        level = current_priority.get()
        place = self._stand_in_line(level, longest)
        try:
            async with asyncio.timeout(longest):
                await place
        except TimeoutError:
            if _is_granted(place):
                return True
            raise self._refusal(f"for {longest:g} s", level) from None
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
            self._came_free.append(self._clock())
            self._hand_out()

    def learn(self, started: float, duration: float, *, is_overloaded: bool) -> None:
        """How a call that was sent at `started` ended, for a limit that adapts."""
        if (adaptive := self._adaptive) is None:
            return
        now = self._clock()
        if is_overloaded:
            adaptive.overloaded(started=started, now=now)
        else:
            adaptive.succeeded(started=started, duration=duration, now=now)
        self._limit = adaptive.value
        self._hand_out()

    def _hand_out(self) -> None:
        while self._in_use < self._limit and (place := self._waiters.pop()) is not None:
            if not place.done():  # else its caller leaves
                self.take()
                place.set_result(None)

    def _stand_in_line(self, level: Priority, longest: float) -> asyncio.Future[None]:
        if not self._waiters:
            self._came_free.clear()  # what it tells of is over
        if not self._waiters.has_room_for(level):
            raise self._refusal(f"and {len(self._waiters)} more are waiting", level)
        wait = self._expected_wait(level)
        if wait is not None and wait > longest * _SURELY:
            raise self._refusal(f"and the line takes {wait:.1f} s", level)
        place = asyncio.get_running_loop().create_future()
        shed = self._waiters.push(place, level)
        if shed is not None and not shed.done():
            reason = "and one that somebody waits for took its place in line"
            shed.set_exception(self._refusal(reason, Priority.BACKGROUND))
        return place

    def _expected_wait(self, level: Priority) -> float | None:
        """Seconds a newcomer would wait, by the pace at which places came free lately."""
        if len(self._came_free) < _ENOUGH:
            return None
        pace = (self._clock() - self._came_free[0]) / len(self._came_free)
        return pace * (self._waiters.ahead_of(level) + 1)

    def _refusal(self, reason: str, level: Priority) -> QueueFullError:
        return QueueFullError(self._name, self._expected_wait(level), reason)


def _is_granted(place: asyncio.Future[None]) -> bool:
    return place.done() and not place.cancelled() and place.exception() is None
