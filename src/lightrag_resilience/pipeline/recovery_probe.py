"""Looks for the recovery of a dependency while its circuit is open, so that no user's call has to.

One worker of the cluster at a time sends the smallest request of its kind. All workers wait for the
same moment, which the breaker's state names, and the breaker grants one of them the permit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable
from contextvars import Context

from lightrag_resilience.calls.attempts import Attempts
from lightrag_resilience.calls.publishing import publish_probe_sent
from lightrag_resilience.circuit.state_machine import Circuit, State
from lightrag_resilience.errors import (
    AttemptTimeoutError,
    CallRejected,
    ShuttingDownError,
    UnsupportedCallError,
)
from lightrag_resilience.events import BackgroundProbeEnded, Event, StateChanged
from lightrag_resilience.failures.classifier import Failure, FailureKind, classify
from lightrag_resilience.retry import BEFORE_LIGHTRAG, LIGHTRAG_BACKOFF
from lightrag_resilience.runtime.process_state import process
from lightrag_resilience.runtime.tasks import keep_until_done
from lightrag_resilience.text import MET, is_by_hand

__all__ = ["Probe", "RecoveryProbe"]

Probe = Callable[[], Awaitable[object]]
"""Makes the smallest request that shows whether a dependency serves its callers."""

_log = logging.getLogger("lightrag_resilience")

_GRACE = 2.0  # seconds after which a probe that was not sent is left to the calls of users
_JITTER = 0.1  # seconds: workers do not all ask for the permit at once
_IDLE_GROWTH = 2.0  # of the time for which nothing was wanted: so long until the next probe
_LONGEST_IDLE = 10.0  # seconds between two probes then, in an outage that is not young
_BURST = 0.5  # seconds in which calls are rejected that were queued when the circuit opened
_AWAITED = LIGHTRAG_BACKOFF + 0.1  # seconds between two probes for callers that wait
_DEMAND_POLL = 0.25  # seconds after which a probe that was put off sees a new demand
_LEASE = 3.0  # seconds after which another worker takes over from one that died
_POLL = 1.0  # seconds between two requests for the permit that another worker holds
_SETTLING = 0.1  # seconds for a verdict to become the cluster's state
_TIMEOUT_WITHOUT = 60.0  # seconds for a probe where attempts have no timeout
_MOST_AT_ONCE = 4  # requests of one probe, none of which has been answered
_MOST_DEATHS = 3  # of the task in one outage
_RESTART_AFTER = 1.0  # seconds
_REFUSED = frozenset({400, 404, 422})
"""Answers that may refuse this very request: they prove neither an outage nor a recovery."""
_LONG_AGO = -math.inf


class RecoveryProbe:
    """Probes one dependency in the background, in one task on the event loop that uses it.

    The task begins when the circuit opens and ends when it closes, when a drain begins, when an
    operator opens the circuit, and at the end of its loop. `Circuit.probed_until` keeps users'
    calls from probing; it is always moved on by no more than the next step takes and two seconds,
    and so a task that has died keeps them off no longer.

    Args:
        guard: The dependency's guard.
        probe: Makes the request.
        loop: The only event loop on which it may run; None for whichever the guard is used on.
        young_for: Seconds of an outage in which callers wait for its end.

    Raises:
        UnsupportedCallError: The probe is no function.
    """

    __slots__ = (
        "__weakref__",
        "_deaths",
        "_due",
        "_function",
        "_generation",
        "_guard",
        "_idle_until",
        "_is_begun",
        "_is_ended",
        "_is_refused",
        "_loop",
        "_only_on",
        "_opened_at",
        "_opens",
        "_seen_at",
        "_task",
        "_unsubscribe",
        "_wake",
        "_young_for",
    )

    _unsubscribe: Callable[[], None]

    def __init__(
        self,
        guard: Attempts,
        probe: Probe,
        loop: asyncio.AbstractEventLoop | None,
        young_for: float,
    ) -> None:
        if not callable(probe):
            raise UnsupportedCallError(
                f"The probe of {guard.name!r} must be an async function without arguments, not a "
                f"{type(probe).__name__}"
            )
        self._guard = guard
        self._function = probe
        self._only_on = loop
        self._young_for = young_for
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):  # until the first call this one is the best guess
            self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._is_begun = False
        self._know_nothing()
        process.reset_in_children(self)

    def _know_nothing(self) -> None:
        self._is_ended = self._is_refused = False
        self._deaths = 0
        self._generation = -1
        self._opens = 0  # breaks of this outage, also those that do not count for the breaker
        self._due = self._idle_until = self._seen_at = self._opened_at = _LONG_AGO

    def is_of(self, probe: Probe, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether it probes by this function."""
        return self._function == probe and self._only_on is loop

    def begin(self) -> None:
        """Probe from now on while the circuit is open."""
        self._is_begun = True
        self._know_nothing()
        self._unsubscribe = self._guard.events.subscribe(self._on_change, StateChanged)
        self._guard.breaker.expect_background_probe(is_expected=True)
        self.notify()

    def end(self) -> None:
        """End it; users' calls probe from now on. From any thread."""
        if self._is_begun:
            self._is_begun = False
            self._end()
            self._unsubscribe()
            self._cancel(self._task)

    def reset_after_fork(self) -> None:
        """In a child process: the task and its loop are the parent's."""
        self._task = self._loop = None
        self._circuit.probed_until = _LONG_AGO
        if self._only_on is not None:
            self._end()

    @property
    def _circuit(self) -> Circuit:
        return self._guard.breaker.circuit

    def _end(self) -> None:
        self._is_ended = True
        self._guard.breaker.expect_background_probe(is_expected=False)

    # ------------------------------------------------------------------ the task

    def _on_change(self, change: Event) -> None:
        if isinstance(change, StateChanged) and change.dependency == self._guard.name:
            if change.new == State.CLOSED.value:
                self._deaths = self._opens = 0
                if self._is_refused and not self._is_ended:
                    self._is_refused = False
                    self._guard.breaker.expect_background_probe(is_expected=True)
            self.notify()

    def notify(self) -> None:
        """Begin, wake or end the task on its loop, as state and policy say; from any thread."""
        if self._only_on is not None and self._only_on.is_closed():
            self._end()
            return
        self._loop = loop = self._only_on or self._guard.loop_in_use or self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                # In an empty context: the probe belongs to no call, query or trace.
                loop.call_soon_threadsafe(self._attend, context=Context())

    def _attend(self) -> None:
        loop, task = asyncio.get_running_loop(), self._task
        if task is not None and not task.done():
            if task.get_loop() is loop:
                self._wake.set()
                return
            self._cancel(task)  # calls come from another loop now
        if self._is_wanted and self._deaths <= _MOST_DEATHS:
            self._wake = asyncio.Event()
            self._task = loop.create_task(self._run(), name=f"recovery probe {self._guard.name}")

    def _cancel(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)

    async def _run(self) -> None:
        guard, circuit = self._guard, self._circuit
        try:
            async with guard.gate.interruptible(guard.name):
                await self._probe_while_open()
        except ShuttingDownError:
            pass  # a drain needs no recovery
        except Exception:  # noqa: BLE001 - logged; calls of users probe meanwhile
            self._deaths += 1
            _log.exception("The recovery probe of %r failed", guard.name)
            loop = asyncio.get_running_loop()
            loop.call_later(_RESTART_AFTER, self._attend, context=Context())
        finally:
            circuit.probed_until = _LONG_AGO

    def _awaited_until(self, idle_until: float) -> float:
        """When to probe for callers that wait, and came before the last probe.

        When LightRAG alone would try again. Where no other has come since the circuit opened, not
        sooner: many calls at once, and none after them, cost a provider few requests.
        """
        demanded_at = self._guard.demanded_at
        since = self._seen_at - demanded_at  # the caller's age when the circuit opened again
        if since >= 2 * _AWAITED:
            return idle_until
        retried_at = self._seen_at + _AWAITED - since % _AWAITED
        is_one_burst = demanded_at <= self._opened_at + _BURST
        return retried_at if is_one_burst else min(idle_until, retried_at)

    @property
    def _is_wanted(self) -> bool:
        circuit = self._circuit
        is_isolated = circuit.state is State.OPEN and is_by_hand(circuit.reason)
        return (
            circuit.shared_admission is None
            and circuit.mode == "enforce"
            and circuit.policy.background_probe
            and not is_isolated
            and not (self._is_ended or self._is_refused)
            and not self._guard.gate.is_closed
        )

    async def _probe_while_open(self) -> None:
        circuit, guard = self._circuit, self._guard
        while self._is_wanted:
            self._wake.clear()
            self._see_state()
            now = guard.clock()
            due, idle_until = self._due, self._idle_until
            if guard.breaker.is_awaited:
                idle_until = self._awaited_until(idle_until)
            if idle_until > max(due, now) and guard.demanded_at < self._seen_at:
                due = min(idle_until, max(due, now + _DEMAND_POLL))
            wait = due - now
            if wait <= 0:
                await self._probe_once()
                continue
            circuit.probed_until = due + _GRACE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _see_state(self) -> None:
        """Set the time of the next probe by the state of the circuit."""
        circuit, now = self._circuit, self._guard.clock()
        if circuit.generation != self._generation:
            self._generation = circuit.generation
            self._due = now + _jitter()
            if circuit.state is State.HALF_OPEN:
                self._due += _LEASE  # the probe of another worker is under way
            else:
                self._see_break(circuit, now)
        cooldown = self._guard.occupancy.cooldown_remaining
        self._due = max(self._due, circuit.open_until, now + cooldown)

    def _see_break(self, circuit: Circuit, now: float) -> None:
        self._opens = max(self._opens + 1, circuit.opens)
        self._due = circuit.open_until + _jitter()
        # Nothing new was wanted since: a provider that is down gets few requests for old demands.
        self._seen_at = now
        if self._opens == 1:  # the call that opened it
            self._opened_at = now
            self._guard.demanded_at = max(self._guard.demanded_at, now)
        idle = _IDLE_GROWTH * (now - self._guard.demanded_at)
        # A young outage may end unseen: callers wait in it. In an old one they would be rejected.
        young_until = self._opened_at + self._young_for
        self._idle_until = min(now + idle, max(now + _LONGEST_IDLE, young_until))
        if circuit.reason.startswith(MET):  # the breaker's pause is the same each time
            self._due = max(self._due, now + circuit.breaks.length(self._opens))

    async def _probe_once(self) -> None:
        circuit, guard = self._circuit, self._guard
        seconds = guard.policy.timeout.attempt or _TIMEOUT_WITHOUT
        admission = await guard.breaker.acquire_in_background(_LEASE)
        began = guard.clock()
        if admission is None:
            self._due = began + _POLL + _jitter()
            return
        self._generation = circuit.generation
        circuit.probed_until = began + seconds + _GRACE
        try:
            error = await guard.send_probe(self._first_answer, admission, seconds)
        except CallRejected:
            self._publish("rejected", began)
            self._due = guard.clock() + circuit.breaks.length(self._opens) + _jitter()
            return
        except Exception:
            guard.breaker.release(admission)
            raise
        self._due = guard.clock() + _SETTLING
        self._publish(_outcome(error), began)
        if error is not None:
            self._follow(classify(error))

    async def _first_answer(self) -> object:
        """The first answer, good or bad, of requests that are sent while there is none.

        One that hangs says nothing of the provider by now. The oldest goes on: a slow model may
        need that long.
        """
        guard, running = self._guard, list[asyncio.Task[object]]()
        try:
            while True:
                running.append(asyncio.create_task(_awaited(self._function)))
                is_young = (guard.breaker.outage or 0.0) < self._young_for
                done, _ = await asyncio.wait(
                    running,
                    timeout=BEFORE_LIGHTRAG if is_young else _LONGEST_IDLE,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if done:
                    return done.pop().result()
                if len(running) == _MOST_AT_ONCE:
                    _abandon(running.pop(1))
                publish_probe_sent(guard, "background")
        finally:
            for each in running:
                _abandon(each)

    def _follow(self, failure: Failure) -> None:
        """Give up a request that is refused, and wait as long as the dependency asks."""
        guard = self._guard
        if _is_unsuitable(failure):
            self._is_refused = True  # some gateways answer 404 while nothing is behind them
            guard.breaker.expect_background_probe(is_expected=False)
            _log.warning(
                "The recovery probe of %r is refused with %s, which shows neither an outage nor a "
                "recovery: calls of users probe this dependency until it has recovered",
                guard.name,
                self._circuit.last or "an error of its own",
            )
        elif failure.counts and failure.retry_after:
            guard.cool_down(min(failure.retry_after, guard.policy.retry.max_retry_after))

    def _publish(self, outcome: str, began: float) -> None:
        events = self._guard.events
        if BackgroundProbeEnded in events.subscribed:
            duration = self._guard.clock() - began
            events.publish(BackgroundProbeEnded(self._guard.name, outcome, duration))


async def _awaited(probe: Probe) -> object:
    return await probe()


def _abandon(request: asyncio.Task[object]) -> None:
    keep_until_done(request)
    request.cancel()  # not awaited: its connection may have stalled


def _outcome(error: Exception | None) -> str:
    if error is None:
        return "success"
    failure = classify(error)
    if failure.counts:
        return "timeout" if isinstance(error, AttemptTimeoutError) else "failure"
    return "unsuitable" if _is_unsuitable(failure) else "unserved"


def _is_unsuitable(failure: Failure) -> bool:
    """Whether the request itself is wrong, or failed before it was sent."""
    is_refused = failure.status in _REFUSED if failure.status else failure.pause == 0.0
    return failure.kind is FailureKind.FATAL and is_refused


def _jitter() -> float:
    return random.uniform(0.0, _JITTER)  # noqa: S311
