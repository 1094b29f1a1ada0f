"""What happens in a guard, as plain data, and where to listen for it.

An event carries no arguments, prompts, results or error texts: names, numbers and classes only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import get_args

from .errors import UnsupportedCallError

__all__ = [
    "AttemptFailed",
    "AttemptRejected",
    "CallAdmitted",
    "CallFailed",
    "CallSucceeded",
    "Counter",
    "DocumentsCounted",
    "DrainEnded",
    "DrainProgress",
    "Event",
    "Events",
    "FallbackUsed",
    "HealthChanged",
    "HedgeSent",
    "Listener",
    "ProbeSent",
    "QueryCompleted",
    "RecoveryCompleted",
    "RetryScheduled",
    "StaleAnswerServed",
    "StateChanged",
    "WorkAbandoned",
]

_log = logging.getLogger("lightrag_resilience")


@dataclass(frozen=True, slots=True)
class CallSucceeded:
    """An attempt, and with it the call, succeeded after `duration` seconds.

    `tokens` is what it used, where a limit on tokens counts them.
    """

    dependency: str
    duration: float
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt failed after `duration` seconds; `kind` is a `FailureKind` value.

    `error` is the name of the error's class, and `status` the HTTP status that was answered, or 0.
    """

    dependency: str
    kind: str
    error: str
    duration: float
    status: int = 0


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call failed for good, `duration` seconds after its begin; `kind` as in `AttemptFailed`."""

    dependency: str
    kind: str
    duration: float


@dataclass(frozen=True, slots=True)
class CallAdmitted:
    """A call waited `seconds` in line, maybe none, and booked `tokens`, and may now be sent."""

    dependency: str
    seconds: float
    tokens: int


@dataclass(frozen=True, slots=True)
class RetryScheduled:
    """Attempt number `attempt` follows in `wait` seconds."""

    dependency: str
    attempt: int
    wait: float


@dataclass(frozen=True, slots=True)
class AttemptRejected:
    """A call was refused before it was sent; `error` is the name of the refusal's class."""

    dependency: str
    error: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A circuit went from one state to another; `generation` grows with each change."""

    dependency: str
    old: str
    new: str
    reason: str
    generation: int


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """Calls that the circuit lets through fail, or no longer do, by what this process sees.

    Attributes:
        dependency: Its name.
        condition: ``failing``, ``degraded`` or ``healthy``.
        reason: What is wrong and what to do; empty where nothing is.
    """

    dependency: str
    condition: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeSent:
    """A half-open circuit let a call through, to find out."""

    dependency: str


@dataclass(frozen=True, slots=True)
class FallbackUsed:
    """A function of a chain failed and the next is called; `reason` is the name of the error."""

    dependency: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True)
class HedgeSent:
    """An answer was late, and is asked for once more."""

    dependency: str


@dataclass(frozen=True, slots=True)
class StaleAnswerServed:
    """A chain whose functions all failed gave an old answer of `source`, `age` seconds old."""

    dependency: str
    source: str
    age: float


@dataclass(frozen=True, slots=True)
class RecoveryCompleted:
    """Documents of a LightRAG's workspace were resumed, or tried again.

    Attributes:
        workspace: The LightRAG's.
        resumed: Documents that were left in the middle.
        requeued: Failed documents that are tried again.
        given_up: Failed documents that are not.
    """

    workspace: str
    resumed: int
    requeued: int
    given_up: int


@dataclass(frozen=True, slots=True)
class DocumentsCounted:
    """So many documents of a LightRAG's workspace have a status, ``failed`` for one."""

    workspace: str
    status: str
    count: int


@dataclass(frozen=True, slots=True)
class QueryCompleted:
    """A query of a protected LightRAG is over.

    Attributes:
        workspace: The LightRAG's.
        outcome: ``success``, ``degraded`` for an answer made without something that is away, or
            ``failed``.
        duration: Seconds until the answer was there, or its first words.
    """

    workspace: str
    outcome: str
    duration: float


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """A drain is in this phase, with `left` in flight; one of both is new."""

    phase: str
    left: int


@dataclass(frozen=True, slots=True)
class DrainEnded:
    """A drain is over: what became of what was in flight, and how many seconds it took."""

    drained: int
    abandoned: int
    stuck: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkAbandoned:
    """A drain gave something up; `kind`, such as ``call``, is that of the journal."""

    kind: str


Event = (
    CallSucceeded
    | AttemptFailed
    | CallFailed
    | CallAdmitted
    | RetryScheduled
    | AttemptRejected
    | StateChanged
    | HealthChanged
    | FallbackUsed
    | HedgeSent
    | StaleAnswerServed
    | RecoveryCompleted
    | ProbeSent
    | DocumentsCounted
    | QueryCompleted
    | DrainProgress
    | DrainEnded
    | WorkAbandoned
)
Listener = Callable[[Event], None]
Counter = Callable[[str, float, int], None]
"""What hears of successes alone: the dependency, the duration in seconds, and the tokens used."""


def _must_be_plain(listener: object, what: str) -> None:
    if not callable(listener) or iscoroutinefunction(listener):
        found = "a coroutine function" if callable(listener) else f"a {type(listener).__name__}"
        raise UnsupportedCallError(f"{what} is a plain function, which is called at once: {found}")


class Events:
    """Hands each event to every listener; one that raises is reported once and dropped.

    Attributes:
        subscribers: Who hears of anything.
        subscribed: The kinds of events that somebody listens to; others need not be made.
        succeeded: Tells that a call succeeded, by the fields of a `CallSucceeded`; None where
            nobody wants to hear of it. This is on the way of every call.
    """

    def __init__(self) -> None:
        self.subscribers: tuple[Listener, ...] = ()
        self.subscribed: frozenset[type[Event]] = frozenset()
        self.succeeded: Counter | None = None
        self._wanted: tuple[tuple[Listener, tuple[type, ...]], ...] = ()
        self._counters: tuple[Counter, ...] = ()
        self._told_of: dict[type, tuple[Listener, ...]] = {}

    def subscribe(self, listener: Listener, *kinds: type[Event]) -> Callable[[], None]:
        """Call `listener` with every event from now on, once each; returns what ends that.

        Where `kinds` are given, with events of these alone: others then cost nothing.

        Raises:
            UnsupportedCallError: It is no plain function, or one of `kinds` is no kind of event.
        """
        _must_be_plain(listener, "A listener")
        if odd := [kind for kind in kinds if kind not in get_args(Event)]:
            raise UnsupportedCallError(
                f"{odd[0]!r} is no kind of event: take classes of lightrag_resilience.events, such "
                "as StateChanged"
            )
        if listener not in self.subscribers:
            self._wanted += ((listener, kinds or get_args(Event)),)
            self._sort()
        return lambda: self._drop(listener)

    def count(self, counter: Counter) -> Callable[[], None]:
        """Call `counter` with each success, of which no event is made; returns what ends that.

        For what must cost little: successes are nearly all events there are.

        Raises:
            UnsupportedCallError: It is no plain function.
        """
        _must_be_plain(counter, "A counter")
        self._counters += (counter,)
        self._sort()
        return lambda: self._drop(counter)

    def publish(self, event: Event) -> None:
        """Tell who listens to it. Never raises for one of theirs."""
        if isinstance(event, CallSucceeded):
            self._count(event.dependency, event.duration, event.tokens)
        self._tell(event)

    def _tell(self, event: Event) -> None:
        for listener in self._told_of.get(event.__class__, ()):
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - whatever it is, the call goes on
                self._failed(listener)

    def _count(self, dependency: str, duration: float, tokens: int) -> None:
        for counter in self._counters:
            try:
                counter(dependency, duration, tokens)
            except Exception:  # noqa: BLE001 - whatever it is, the call goes on
                self._failed(counter)

    def _count_and_tell(self, dependency: str, duration: float, tokens: int) -> None:
        self.publish(CallSucceeded(dependency, duration, tokens))

    def _failed(self, listener: object) -> None:
        self._drop(listener)
        _log.exception("A listener of lightrag_resilience failed and is dropped")

    def _drop(self, dropped: object) -> None:
        self._wanted = tuple(wanted for wanted in self._wanted if wanted[0] != dropped)
        self._counters = tuple(counter for counter in self._counters if counter != dropped)
        self._sort()

    def _sort(self) -> None:
        self.subscribers = tuple(listener for listener, _ in self._wanted)
        self._told_of = {
            kind: tuple(listener for listener, kinds in self._wanted if kind in kinds)
            for kind in get_args(Event)
        }
        self.subscribed = frozenset(kind for kind, listeners in self._told_of.items() if listeners)
        if CallSucceeded in self.subscribed:
            self.succeeded = self._count_and_tell
        else:
            self.succeeded = self._count if self._counters else None
