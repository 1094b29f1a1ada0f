"""Rate limits over all workers: turns are reserved in Redis, in small lots.

While Redis is unavailable or slow, each worker goes on with its share: the limit divided by the
last known number of workers.
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
from lightrag_resilience.runtime.asyncio_compat import running_loop

from .reservations import PAID_LONG_AGO, Reservation, ReservationRequest, ReservedTurns

__all__ = ["SharedRateLimiter"]

_ANSWER_TIMEOUT = 0.3  # seconds for one reservation; then the local limiter takes over
_SLOW_FOR = 1.0  # seconds for which it does, before Redis is tried again
_LOTS_PER_BURST = 4
_MAX_LOT = 64  # requests
_RETURNABLE_FOR = 1.0  # seconds after a lot in which unused turns are given back
_WHY = "by all workers together"


class _Synchronizer(Protocol):
    """Talks to Redis from a thread of its own. No method waits."""

    @property
    def connected(self) -> bool: ...
    def reserve(self, limit: SharedRateLimiter) -> None: ...
    def cool_down(self, name: str, seconds: float) -> None: ...


class _Caller:
    """A caller that waits for a reservation."""

    __slots__ = ("loop", "ready", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[float | None] = self.loop.create_future()

    def notify(self, ready: float | None = None, error: Exception | None = None) -> None:
        """Answer the caller; from the sync thread. `ready` None sends it to the local limiter."""
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            self.loop.call_soon_threadsafe(self._notify, ready, error)

    def _notify(self, ready: float | None, error: Exception | None) -> None:
        if self.ready.done():
            return
        if error is None:
            self.ready.set_result(ready)
        else:
            self.ready.set_exception(error)


class SharedRateLimiter:
    """The rate limits of one dependency over all workers. Thread-safe, for any event loop.

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
        """Called in the sync thread with the seconds of a cool-down of another worker."""
        self._prefix = prefix
        self._sync = sync
        self._clock = clock
        self._lock = threading.Lock()
        self._waiters: deque[_Caller] = deque()
        self._is_reserving = False
        self._requests, self._tokens = ReservedTurns(), ReservedTurns()
        self._unused_requests = self._unused_tokens = 0
        self._sleeping = 0
        self._paid_until = (-math.inf, -math.inf)
        """When all workers' requests and tokens are paid for, as far as this worker knows."""
        self._recoveries = 0
        """Ended outages of Redis. Requests carry `owed` until one that was made after the last
        outage is answered: an earlier one does not cover what Redis lost since."""
        self._recoveries_reported = 0
        self._lot_received_at = 0.0
        self._workers = 1
        self._slow_until = -math.inf
        self._local_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, LocalRateLimiter] = (
            WeakKeyDictionary()
        )

    @property
    def key(self) -> str:
        """The key in Redis."""
        return f"{self._prefix}rl:{quote(self.name)}"

    @property
    def per_turn(self) -> tuple[float, float]:
        """Seconds for each request and for each token."""
        policy = self.policy
        return (60.0 / policy.rpm if policy.rpm else 0.0, 60.0 / policy.tpm if policy.tpm else 0.0)

    def receive_cooldown(self, seconds: float) -> None:
        """Another worker published a cool-down."""
        if self.on_cooldown is not None:
            self.on_cooldown(seconds)

    def cool_down(self, seconds: float) -> None:
        """Publish a cool-down that the provider asked for to all workers."""
        self._sync.cool_down(self.name, seconds)

    # ------------------------------------------------------------------ for calls

    def try_acquire(self, tokens: int) -> bool:
        """Take a turn of so many tokens if this worker holds one that is due now."""
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
            RateLimitedError: The turn is due later than that, or than the policy allows.
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

    def update_policy(self, policy: LimitPolicy) -> None:
        """Apply other limits; Redis keeps what was sent."""
        self.policy = policy

    def settle(self, reserved: int, used: int) -> None:
        """Correct the reserved tokens of a call by those it used."""
        if not self.policy.tpm:
            return
        most = int(self.policy.tpm)  # no more was reserved either
        reserved, used = min(reserved, most), min(used, most)
        if not self._sync.connected and (local := self._local_limiter()) is not None:
            local.settle(reserved, used)
            return
        with self._lock:
            spare = min(reserved - used, self._lot[1] - self._tokens.total)
            # Keep the spare tokens here for the next call, if it overtakes no other.
            if spare > 0 and not self._waiters and self._sleeping <= 0:
                self._tokens.put_back(self._clock(), spare)
                used += spare
            self._unused_tokens += reserved - used

    @property
    def _can_reserve(self) -> bool:
        """Whether Redis is available, and was not too slow recently."""
        return self._sync.connected and self._clock() >= self._slow_until

    async def _reserve(self, tokens: int) -> float | None:
        """The time from which the call may go; None if Redis does not answer in time."""
        with self._lock:
            if not self._waiters and (ready := self._take(tokens)) is not None:
                return ready
            caller = _Caller(tokens)
            self._waiters.append(caller)
            is_first, self._is_reserving = not self._is_reserving, True
        if is_first:
            self._sync.reserve(self)
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                return await caller.ready
        except TimeoutError:
            self._abandon(caller)
            self._slow_until = self._clock() + _SLOW_FOR
            self._is_reserving = False  # the pending one may never be answered
            return None
        except asyncio.CancelledError:
            self._abandon(caller)
            raise

    def _abandon(self, caller: _Caller) -> None:
        """Remove a caller that gave up, and put back the turn it may just have been given."""
        with self._lock, contextlib.suppress(ValueError):
            self._waiters.remove(caller)
        answer = caller.ready
        if not answer.done() or answer.cancelled() or answer.exception() is not None:
            return
        if (ready := answer.result()) is not None:
            self._put_back(ready, caller.tokens)

    def _take(self, tokens: int) -> float | None:
        """Take a turn out of those held: the time from which it may be used, or None."""
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
        """Seconds until all workers' requests and tokens are paid for; negative: they have been."""
        now = self._clock()
        requests, tokens = (
            max(paid - now, least)
            for paid, least in zip(self._paid_until, PAID_LONG_AGO, strict=True)
        )
        return requests, tokens

    async def _acquire_locally(self, tokens: int, longest: float) -> bool:
        loop = asyncio.get_running_loop()
        local = self._local_limiter()
        if local is None:
            local = LocalRateLimiter(self.name, self.policy, 1 / self._workers, owed=self._owed)
            self._local_limiters[loop] = local
        waited = await local.acquire(tokens, longest)
        with self._lock:
            if self._local_limiters.get(loop) is local:
                self._extend_paid_until(local.owed)
                # A slow Redis is charged for each; after an outage it gets `owed` instead.
                if self._sync.connected:
                    self._unused_requests -= 1
                    self._unused_tokens -= tokens
        return waited

    def _local_limiter(self) -> LocalRateLimiter | None:
        """The local limiter of the running loop, if it is in use."""
        loop = running_loop()
        return None if loop is None else self._local_limiters.get(loop)

    def _extend_paid_until(self, owed: tuple[float, float]) -> None:
        """Record what is owed, so that neither an outage nor its end begins with a new burst."""
        now = self._clock()
        self._paid_until = (
            max(self._paid_until[0], now + owed[0]),
            max(self._paid_until[1], now + owed[1]),
        )

    # ------------------------------------------------------------------ from the sync thread

    def on_redis_back(self) -> None:
        """An outage ended. Redis may have missed messages, or lost reservations."""
        self._recoveries += 1

    @property
    def _lot(self) -> tuple[int, int]:
        """The size of a lot, in requests and tokens."""
        requests = min(max(int(self.policy.request_burst / _LOTS_PER_BURST), 1), _MAX_LOT)
        return requests, max(int(self.policy.tokens_at_once / _LOTS_PER_BURST), 1)

    def next_request(self) -> ReservationRequest | None:
        """The turns to reserve for the waiting callers; None if there are none."""
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
            if self._clock() > self._lot_received_at + _RETURNABLE_FOR:
                # The rate has made room for them by now; given back as well they would count twice.
                self._unused_requests = min(self._unused_requests, 0)
                self._unused_tokens = min(self._unused_tokens, 0)
            is_reported = self._recoveries == self._recoveries_reported
            owed = PAID_LONG_AGO if is_reported else self._owed
            waiting = self._end_local_limiters()
            given_back = (self._unused_requests - waiting[0], self._unused_tokens - waiting[1])
            self._unused_requests = self._unused_tokens = 0
            return ReservationRequest(
                callers, needed, wanted, given_back, owed, waiting, self._recoveries
            )

    def _end_local_limiters(self) -> tuple[int, int]:
        """Drop the local limiters; the requests and tokens of callers that still wait in them.

        Those callers keep their turns, and what they take is paid for before the next.
        """
        if not self._local_limiters:
            return 0, 0
        waiting = [local.waiting for local in self._local_limiters.values()]
        self._local_limiters.clear()
        requests, tokens = sum(each[0] for each in waiting), sum(each[1] for each in waiting)
        (request, token), owed = self.per_turn, self._owed
        self._extend_paid_until(
            (
                max(owed[0], 0.0) + requests * request * self._workers,
                max(owed[1], 0.0) + tokens * token * self._workers,
            )
        )
        return requests, tokens

    def on_reserved(self, request: ReservationRequest, reservation: Reservation) -> None:
        """Hand the reserved turns to the waiting callers."""
        now = self._clock()
        with self._lock:
            self._workers = reservation.workers
            self._lot_received_at = now
            self._recoveries_reported = request.recoveries
            if now < self._slow_until:  # too late: its callers went to the local limiter
                self._unused_requests += reservation.taken[0]
                self._unused_tokens += reservation.taken[1]
                return
            held = (self._requests, self._tokens)
            for turns, start, each, taken in zip(
                held, reservation.starts, self.per_turn, reservation.taken, strict=True
            ):
                turns.add(now + start, each, taken, now)
            bursts = (self.policy.request_burst, self.policy.tokens_at_once)
            requests, tokens = (
                now + start + each * (burst + taken)
                for start, each, burst, taken in zip(
                    reservation.starts, self.per_turn, bursts, reservation.taken, strict=True
                )
            )
            if request.recoveries != self._recoveries:  # calls went through local limiters since
                requests, tokens = (
                    max(requests, self._paid_until[0]),
                    max(tokens, self._paid_until[1]),
                )
            self._paid_until = (requests, tokens)
            served = 0
            while self._waiters and (ready := self._take(self._waiters[0].tokens)) is not None:
                self._waiters.popleft().notify(ready)
                served += 1
            if served or any(reservation.taken):
                return
            for _ in range(min(request.callers, len(self._waiters))):
                error = RateLimitedError(self.name, reservation.wait, _WHY)
                self._waiters.popleft().notify(error=error)

    def on_reservation_lost(self, request: ReservationRequest) -> None:
        """The reservation failed: send the waiting callers to the local limiter."""
        with self._lock:
            # Only the answer may be lost: what was given back must not be given back again.
            self._unused_requests += min(request.given_back[0] + request.waiting[0], 0)
            self._unused_tokens += min(request.given_back[1] + request.waiting[1], 0)
            self._is_reserving = False
            while self._waiters:
                self._waiters.popleft().notify()

    def reset_after_fork(self) -> None:
        """In a child process: drop the lock and the turns, which are the parent's."""
        self._lock = threading.Lock()
        self._waiters.clear()
        self._is_reserving = False
        self._requests, self._tokens = ReservedTurns(), ReservedTurns()
        self._unused_requests = self._unused_tokens = 0
        self._slow_until = -math.inf
        self._paid_until = (-math.inf, -math.inf)
        self._recoveries_reported = self._recoveries
        self._local_limiters.clear()
