"""Requests and tokens a minute of all workers together: turns are booked in Redis, in small lots.

Where Redis is away, or slow, each worker goes on with its share: the limit, divided by the workers
last seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol
from urllib.parse import quote
from weakref import WeakKeyDictionary

from lightrag_resilience.config.policies import LimitPolicy
from lightrag_resilience.errors import RateLimitedError
from lightrag_resilience.limits.rate_limiter import LocalRateLimiter

from .reservations import Reservation, ReservationRequest, ReservedTurns

__all__ = ["SharedRateLimiter"]

_PATIENCE = 0.3  # seconds for one booking; then this worker goes on alone
_SLOW = 1.0  # seconds for which it does so, before the next caller tries
_LOTS = 4  # in what may go at once
_LARGEST_LOT = 64  # requests
_FRESH = 1.0  # seconds in which turns can be given back
_WHY = "by all workers together"


class _Synchronizer(Protocol):
    """The side that talks to Redis, in a thread of its own. No method waits."""

    @property
    def connected(self) -> bool: ...
    def reserve(self, limit: SharedRateLimiter) -> None: ...
    def cool_down(self, name: str, seconds: float) -> None: ...


class _Caller:
    """A caller that waits for a booking."""

    __slots__ = ("loop", "ready", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[float | None] = self.loop.create_future()

    def notify(self, ready: float | None = None, error: Exception | None = None) -> None:
        """From the synchronizer's thread."""
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed by now
            self.loop.call_soon_threadsafe(self._notify, ready, error)

    def _notify(self, ready: float | None, error: Exception | None) -> None:
        if self.ready.done():
            return
        if error is None:
            self.ready.set_result(ready)
        else:
            self.ready.set_exception(error)


class SharedRateLimiter:
    """The limits of one dependency over all workers; for calls from any thread and event loop.

    Args:
        name: The dependency.
        policy: The limits; without any, only cool-downs are shared.
        prefix: Of the key in Redis.
        sync: Talks to Redis.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        policy: LimitPolicy,
        prefix: str,
        sync: _Synchronizer,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.policy = policy
        self.on_cooldown: Callable[[float], None] | None = None
        """Told, in the synchronizer's thread, for how many seconds the provider asked to wait."""
        self._prefix = prefix
        self._sync = sync
        self._clock = clock
        self._lock = threading.Lock()
        self._waiters: deque[_Caller] = deque()
        self._is_reserving = False
        self._requests, self._tokens = ReservedTurns(), ReservedTurns()
        self._unused_requests = self._unused_tokens = 0
        self._sleeping = 0
        self._paid = (-math.inf, -math.inf)
        """When the requests and the tokens of all workers are paid for, as far as is known here."""
        self._returns = 0
        """How often Redis has come back. A demand tells it what is owed until one is answered that
        was made since the last return: an earlier one says nothing of what was lost after it."""
        self._returns_told = 0
        self._lot_came = 0.0
        self._workers = 1
        self._slow_until = -math.inf
        self._local_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, LocalRateLimiter] = (
            WeakKeyDictionary()
        )

    @property
    def key(self) -> str:
        """Where it is kept."""
        return f"{self._prefix}rl:{quote(self.name)}"

    @property
    def per_turn(self) -> tuple[float, float]:
        """Seconds for each request and for each token."""
        policy = self.policy
        return (60.0 / policy.rpm if policy.rpm else 0.0, 60.0 / policy.tpm if policy.tpm else 0.0)

    def receive_cooldown(self, seconds: float) -> None:
        """Another worker was asked to wait."""
        if self.on_cooldown is not None:
            self.on_cooldown(seconds)

    def cool_down(self, seconds: float) -> None:
        """The provider asked to wait: all workers shall."""
        self._sync.cool_down(self.name, seconds)

    # ------------------------------------------------------------------ for calls

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if one is held that has come."""
        tokens = min(tokens, int(self.policy.tpm or 0))
        with self._lock:
            if self._waiters or not self._can_reserve:
                return False
            ready = self._take(tokens)
        if ready is None:
            return False
        if ready > self._clock():
            self._put_back(ready, tokens)
            return False
        return True

    async def acquire(self, tokens: int, longest: float) -> bool:
        """Wait for a turn of so many tokens, at most `longest` seconds. True if there was a wait.

        Raises:
            RateLimitedError: The turn would come later than that, or than the policy allows.
        """
        tokens = min(tokens, int(self.policy.tpm or 0))  # or a large call could never pass
        ready = await self._reserve(tokens) if self._can_reserve else None
        if ready is None:
            return await self._acquire_locally(tokens, longest)
        wait = ready - self._clock()
        if wait <= 0:
            return False
        if wait > min(longest, self.policy.max_wait):
            self._put_back(ready, tokens)
            raise RateLimitedError(self.name, wait, _WHY)
        self._sleeping += 1
        try:
            await asyncio.sleep(wait)
        except BaseException:
            self._put_back(ready, tokens)
            raise
        finally:
            self._sleeping -= 1
        return True

    def settle(self, booked: int, used: int) -> None:
        """A call for which tokens were booked has used so many."""
        if not self.policy.tpm:
            return
        most = int(self.policy.tpm)  # more than that was not booked either
        booked, used = min(booked, most), min(used, most)
        if not self._sync.connected and (local := self._local_limiter()) is not None:
            local.settle(booked, used)
            return
        with self._lock:
            spare = min(booked - used, self._lot[1] - self._tokens.total)
            if spare > 0 and not self._waiters and self._sleeping <= 0:  # nobody is overtaken
                self._tokens.put_back(self._clock(), spare)
                used += spare
            self._unused_tokens += booked - used

    @property
    def _can_reserve(self) -> bool:
        """Whether Redis is there, and not too slow to be waited for."""
        return self._sync.connected and self._clock() >= self._slow_until

    async def _reserve(self, tokens: int) -> float | None:
        """When the call may go; None where Redis does not say."""
        with self._lock:
            if not self._waiters and (ready := self._take(tokens)) is not None:
                return ready
            caller = _Caller(tokens)
            self._waiters.append(caller)
            begins, self._is_reserving = not self._is_reserving, True
        if begins:
            self._sync.reserve(self)
        try:
            async with asyncio.timeout(_PATIENCE):
                return await caller.ready
        except TimeoutError:
            self._leave(caller)
            self._slow_until = self._clock() + _SLOW
            self._is_reserving = False  # what became of it is not known: the next caller asks anew
            return None
        except asyncio.CancelledError:
            self._leave(caller)
            raise

    def _leave(self, caller: _Caller) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._waiters.remove(caller)
        answer = caller.ready
        if not answer.done() or answer.cancelled() or answer.exception() is not None:
            return
        if (ready := answer.result()) is not None:
            self._put_back(ready, caller.tokens)

    def _take(self, tokens: int) -> float | None:
        """A turn out of what is held, or None."""
        now = self._clock()
        self._unused_requests += self._requests.expire(now)
        self._unused_tokens += self._tokens.expire(now)
        has_requests = not self.policy.rpm or self._requests.total
        if not has_requests or self._tokens.total < tokens:
            return None
        ready = self._requests.take(1, now) if self.policy.rpm else now
        return max(ready, self._tokens.take(tokens, now))

    def _put_back(self, ready: float, tokens: int) -> None:
        with self._lock:
            if self.policy.rpm:
                self._requests.put_back(ready, 1)
            self._tokens.put_back(ready, tokens)

    @property
    def _owed(self) -> tuple[float, float]:
        """Seconds until the requests and the tokens of all workers are paid for."""
        now = self._clock()
        return max(self._paid[0] - now, 0.0), max(self._paid[1] - now, 0.0)

    async def _acquire_locally(self, tokens: int, longest: float) -> bool:
        loop = asyncio.get_running_loop()
        local = self._local_limiter()
        if local is None:
            local = LocalRateLimiter(self.name, self.policy, 1 / self._workers, owed=self._owed)
            self._local_limiters[loop] = local
        waited = await local.acquire(tokens, longest)
        with self._lock:
            if self._local_limiters.get(loop) is local:
                self._pay(local.owed)
                # Redis hears of each, unless it is away: then, of what is left to be paid for.
                if self._sync.connected:
                    self._unused_requests -= 1
                    self._unused_tokens -= tokens
        return waited

    def _local_limiter(self) -> LocalRateLimiter | None:
        """That of the loop that runs here, where calls go alone on it."""
        loop = asyncio._get_running_loop()  # noqa: SLF001 - the other one raises
        return None if loop is None else self._local_limiters.get(loop)

    def _pay(self, owed: tuple[float, float]) -> None:
        """Remember until when is paid for: no outage, and no return, begins with a new burst."""
        now = self._clock()
        self._paid = max(self._paid[0], now + owed[0]), max(self._paid[1], now + owed[1])

    # ------------------------------------------------------------------ the synchronizer's side

    def on_redis_back(self) -> None:
        """Redis is, and may have missed what was sent, or forgotten what was booked."""
        self._returns += 1

    @property
    def _lot(self) -> tuple[int, int]:
        """Requests and tokens to book at once."""
        requests = min(max(int(self.policy.request_burst / _LOTS), 1), _LARGEST_LOT)
        return requests, max(int(self.policy.tokens_at_once / _LOTS), 1)

    def next_request(self) -> ReservationRequest | None:
        """What to book for those who wait; None where nobody does."""
        with self._lock:
            if not self._waiters:
                self._is_reserving = False
                return None
            lot, token_lot = self._lot
            callers, tokens = 0, 0
            for caller in self._waiters:
                if callers and (callers >= lot or tokens + caller.tokens > token_lot):
                    break
                callers += 1
                tokens += caller.tokens
            needed = (
                max(callers - self._requests.total, 0) if self.policy.rpm else 0,
                max(tokens - self._tokens.total, 0),
            )
            wanted = (max(needed[0], lot if needed[0] else 0), needed[1])
            if self.policy.tpm and needed[1]:
                wanted = (wanted[0], max(needed[1], token_lot))
            if self._clock() > self._lot_came + _FRESH:
                # By now there is room again without them, and they would be there twice.
                self._unused_requests = min(self._unused_requests, 0)
                self._unused_tokens = min(self._unused_tokens, 0)
            owed = self._owed if self._returns != self._returns_told else (0.0, 0.0)
            waiting = self._end_local_limiters()
            given_back = (self._unused_requests - waiting[0], self._unused_tokens - waiting[1])
            self._unused_requests = self._unused_tokens = 0
            return ReservationRequest(
                callers, needed, wanted, given_back, owed, waiting, self._returns
            )

    def _end_local_limiters(self) -> tuple[int, int]:
        """Requests and tokens of those who wait alone: they go on, and others go after them."""
        waiting = [local.waiting for local in self._local_limiters.values()]
        self._local_limiters.clear()
        requests, tokens = sum(each[0] for each in waiting), sum(each[1] for each in waiting)
        (request, token), owed = self.per_turn, self._owed
        self._pay(
            (
                owed[0] + requests * request * self._workers,
                owed[1] + tokens * token * self._workers,
            )
        )
        return requests, tokens

    def on_reserved(self, demand: ReservationRequest, booking: Reservation) -> None:
        """What came of a demand."""
        now = self._clock()
        with self._lock:
            self._workers = booking.workers
            self._lot_came = now
            self._returns_told = demand.returns
            if now < self._slow_until:  # those for whom it was have gone
                self._unused_requests += booking.taken[0]
                self._unused_tokens += booking.taken[1]
                return
            stocks = (self._requests, self._tokens)
            for stock, start, each, taken in zip(
                stocks, booking.starts, self.per_turn, booking.taken, strict=True
            ):
                stock.add(now + start, each, taken, now)
            bursts = (self.policy.request_burst, self.policy.tokens_at_once)
            requests, tokens = (
                now + start + each * (burst + taken)
                for start, each, burst, taken in zip(
                    booking.starts, self.per_turn, bursts, booking.taken, strict=True
                )
            )
            if demand.returns != self._returns:  # meanwhile calls have gone alone
                requests, tokens = max(requests, self._paid[0]), max(tokens, self._paid[1])
            self._paid = (requests, tokens)
            served = 0
            while self._waiters and (ready := self._take(self._waiters[0].tokens)) is not None:
                self._waiters.popleft().notify(ready)
                served += 1
            if served or any(booking.taken):
                return
            for _ in range(min(demand.callers, len(self._waiters))):
                error = RateLimitedError(self.name, booking.wait, _WHY)
                self._waiters.popleft().notify(error=error)

    def on_reservation_lost(self, demand: ReservationRequest) -> None:
        """Redis is away: those who wait go on alone."""
        with self._lock:
            # It may have taken back what was given back, and only its answer be lost.
            self._unused_requests += min(demand.given_back[0] + demand.waiting[0], 0)
            self._unused_tokens += min(demand.given_back[1] + demand.waiting[1], 0)
            self._is_reserving = False
            while self._waiters:
                self._waiters.popleft().notify()

    def reset_after_fork(self) -> None:
        """In a child process: no lock and no turn of the parent's is ours."""
        self._lock = threading.Lock()
        self._waiters.clear()
        self._is_reserving = False
        self._requests, self._tokens = ReservedTurns(), ReservedTurns()
        self._unused_requests = self._unused_tokens = 0
        self._slow_until = -math.inf
        self._paid = (-math.inf, -math.inf)
        self._returns_told = self._returns
        self._local_limiters.clear()
