"""The ways to call a dependency that are compared: LightRAG alone, peers' defaults, and ours."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from lightrag_resilience.breakers import Breaker
from lightrag_resilience.circuit import evidence
from lightrag_resilience.circuit.sliding_window import make_window
from lightrag_resilience.circuit.state_machine import Circuit, State
from lightrag_resilience.composition.wait_for_recovery import Patience, retry_until_available
from lightrag_resilience.config import policies
from lightrag_resilience.events import Event, Events, StateChanged
from lightrag_resilience.pipeline.guard import Guard

from .world import TIMEOUT, Call, Policy

__all__ = ["ALONE", "OURS", "POLICIES", "chance_of_opening", "ours"]

_NEWS = 0.003  # seconds for a change of state to reach another worker


def _now() -> float:
    return asyncio.get_running_loop().time()


class _RejectedError(Exception):
    """A peer's breaker is open."""


class _Retrying:
    """Attempts so many seconds apart, all within twice the timeout, as LightRAG's queue has it."""

    def __init__(self, attempts: int, wait: float) -> None:
        self.attempts, self.wait = attempts, wait
        self.trips = 0

    async def ask(self, worker: int, call: Call) -> None:
        async with asyncio.timeout(2 * TIMEOUT):
            for left in reversed(range(self.attempts)):
                try:
                    async with asyncio.timeout(TIMEOUT):
                        await self.attempt(worker, call)
                        return
                except Exception:
                    if not left:
                        raise
                await asyncio.sleep(self.wait)

    async def attempt(self, worker: int, call: Call) -> None:
        del worker
        await call()


class _RateBreaker:
    """Opens by the share of failures in a window, and closes by their share among its probes."""

    def __init__(self, window: policies.BreakerPolicy, open_for: float, probes: int) -> None:
        self._policy, self._open_for, self._probes = window, open_for, probes
        self._window = make_window(window, 0.0)
        self._is_closed = True
        self._until, self._sent = -math.inf, 0
        self._results: list[bool] = []
        self._generation = self.trips = 0

    def acquire(self) -> int:
        if not self._is_closed:
            if _now() < self._until or self._sent == self._probes:
                raise _RejectedError
            self._sent += 1
        return self._generation

    def record(self, generation: int, *, failed: bool) -> None:
        policy, window = self._policy, self._window
        too_many = policy.failure_rate or 1.0
        if generation != self._generation:
            return
        if not self._is_closed:
            self._results.append(failed)
            if len(self._results) == self._probes:
                self._enter(is_closed=sum(self._results) < too_many * self._probes)
            return
        window.record(_now(), failed=failed, slow=False)
        if window.calls >= policy.min_calls and window.failed >= too_many * window.calls:
            self.trips += 1
            self._enter(is_closed=False)

    def _enter(self, *, is_closed: bool) -> None:
        self._is_closed = is_closed
        self._window = make_window(self._policy, _now())
        self._until, self._sent, self._results = _now() + self._open_for, 0, []
        self._generation += 1


class _Peer(_Retrying):
    """A library's retry around its breaker, as its guide composes them; each worker has its own."""

    def __init__(
        self, attempts: int, wait: float, make: Callable[[], _RateBreaker], count: int
    ) -> None:
        super().__init__(attempts, wait)
        self._breakers = [make() for _ in range(count)]

    async def attempt(self, worker: int, call: Call) -> None:
        breaker = self._breakers[worker]
        generation = breaker.acquire()
        failed = True
        try:
            await call()
            failed = False
        finally:
            before = breaker.trips
            breaker.record(generation, failed=failed)
            self.trips += breaker.trips - before


def _alone(count: int, probe: Call) -> _Retrying:
    del count, probe
    return _Retrying(attempts=3, wait=4.0)  # tenacity's wait_exponential(min=4) in LightRAG


def _resilience4j(count: int, probe: Call) -> _Peer:
    del probe
    window = policies.BreakerPolicy(failure_rate=0.5, window_calls=100, min_calls=100)
    return _Peer(3, 0.5, lambda: _RateBreaker(window, open_for=60.0, probes=10), count)


def _polly(count: int, probe: Call) -> _Peer:
    del probe
    window = policies.BreakerPolicy(
        failure_rate=0.1, window="time", window_seconds=30.0, min_calls=100
    )
    return _Peer(4, 2.0, lambda: _RateBreaker(window, open_for=5.0, probes=1), count)


class _LinkedBreaker(Breaker):
    """A breaker of several workers: by its own evidence, and by the states of the others."""

    is_adopting = False

    def adopt(self, theirs: Circuit) -> None:
        circuit, now = self.circuit, _now()
        if circuit.state is theirs.state:
            return
        left = max(theirs.open_until - now, 0.0)
        circuit.restore(
            theirs.state, now, theirs.reason, remaining=left, opens=theirs.opens, outage=0.0
        )
        self.is_adopting = True
        self._queue_transition()
        self._publish_transitions()
        self.is_adopting = False


class _Guarded:
    """This package: real guards, with a retry budget that all share and states that spread."""

    def __init__(
        self,
        policy: policies.Policy,
        retry: policies.RetryPolicy,
        count: int,
        patience: float = 0.0,
        max_outage: float = 0.0,
    ) -> None:
        self.trips = 0
        self._patience = functools.partial(Patience, patience, max_outage=max_outage)
        policy = policy.with_changes(retry=retry)
        self.guards = [self._guard(policy, count) for _ in range(count)]

    def _guard(self, policy: policies.Policy, count: int) -> Guard:
        events, clock = Events(), asyncio.get_running_loop().time
        breaker = _LinkedBreaker("llm", policy.effective_breaker, events=events, clock=clock)
        events.subscribe(functools.partial(self._spread, breaker), StateChanged)
        return Guard(
            "llm",
            policy,
            events=events,
            breaker=breaker,
            clock=clock,
            sleep=asyncio.sleep,
            workers=lambda: count,
        )

    def _spread(self, breaker: _LinkedBreaker, change: Event) -> None:
        if breaker.is_adopting or not isinstance(change, StateChanged):
            return
        self.trips += (change.old, change.new) == (State.CLOSED.value, State.OPEN.value)
        loop = asyncio.get_running_loop()
        for guard in self.guards:
            if isinstance(guard.breaker, _LinkedBreaker) and guard.breaker is not breaker:
                loop.call_later(_NEWS, guard.breaker.adopt, breaker.circuit)

    async def ask(self, worker: int, call: Call) -> None:
        guard = self.guards[worker]
        await retry_until_available(
            guard, functools.partial(guard.call, call), patience=self._patience()
        )


def _policy(**breaker: Any) -> policies.Policy:
    return policies.Policy.llm(
        timeout=policies.TimeoutPolicy().inheriting(TIMEOUT),
        breaker=policies.BreakerPolicy(**breaker),
    )


def _former(count: int, probe: Call) -> _Guarded:
    """Five in a row or half of ten, 5 s open, no background probe and no patience."""
    del probe
    retry = policies.RetryPolicy(attempts=4, brownout_attempts=1)
    return _Guarded(_policy(consecutive_failures=5, failure_rate=0.5), retry, count)


def ours(patience: float = 12.0, max_outage: float = 60.0, **breaker: Any) -> Policy:
    """This package, by default with its defaults."""

    def make(count: int, probe: Call) -> _Guarded:
        policy = _policy(**breaker)
        made = _Guarded(policy, policy.retry, count, patience, max_outage)
        for guard in made.guards:
            guard.set_probe(probe)
        return made

    return make


ALONE, OURS = "LightRAG alone", "ours"
POLICIES: dict[str, Policy] = {
    ALONE: _alone,
    "five in a row": _former,
    "resilience4j": _resilience4j,
    "Polly": _polly,
    OURS: ours(),
}


@contextmanager
def chance_of_opening(chance: float) -> Iterator[None]:
    """Open circuits at another chance of so long a run."""
    with patch.object(evidence, "_CHANCE", math.log(chance)):
        yield
