"""Events of guards and drains as plain data, and how to subscribe to them.

An event holds names, numbers and classes only: no arguments, prompts, results or error texts.
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
    "BackgroundProbeEnded",
    "CallAdmitted",
    "CallFailed",
    "CallSucceeded",
    "Counter",
    "DocumentDegraded",
    "DocumentProcessed",
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
    "TokensUsed",
    "WorkAbandoned",
]

_log = logging.getLogger("lightrag_resilience")


@dataclass(frozen=True, slots=True)
class CallSucceeded:
    """An attempt, and with it the call, succeeded after `duration` seconds.

    `tokens` are those it used; 0 where neither its answer nor a limit on tokens says how many.
    """

    dependency: str
    duration: float
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt failed after `duration` seconds; `kind` is a `FailureKind` value.

    `error` is the name of the error's class, `status` the HTTP status of the answer, or 0.
    """

    dependency: str
    kind: str
    error: str
    duration: float
    status: int = 0


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call failed after all retries, `duration` seconds in all; `kind` as in `AttemptFailed`."""

    dependency: str
    kind: str
    duration: float


@dataclass(frozen=True, slots=True)
class CallAdmitted:
    """A call may be sent: it waited `seconds`, perhaps 0, and reserved `tokens`."""

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
    """A call was rejected before it was sent; `error` is the name of the error's class."""

    dependency: str
    error: str


@dataclass(frozen=True, slots=True)
class TokensUsed:
    """An attempt used `tokens`, as its provider reports, or by an estimate.

    Attributes:
        dependency: Its name.
        work: ``query`` or ``document`` of a protected LightRAG, or ``other``.
        use: ``answer``, or the cause for which they were wasted: ``failed`` for a first attempt and
            ``retry`` for a further one, ``hedge`` for the slower of two calls, ``cancelled``.
        tokens: Of prompt and answer, above 0.
    """

    dependency: str
    work: str
    use: str
    tokens: int


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
    """Calls that the circuit admits begin to fail, or no longer fail, in this process.

    Attributes:
        dependency: Its name.
        condition: ``failing``, ``degraded`` or ``healthy``.
        reason: What is wrong and what to do; empty if nothing is.
    """

    dependency: str
    condition: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeSent:
    """A half-open circuit admitted a probe; its `origin` is a ``call`` or the ``background``."""

    dependency: str
    origin: str = "call"


@dataclass(frozen=True, slots=True)
class BackgroundProbeEnded:
    """A probe in the background ended after `duration` seconds.

    `outcome` is ``success``; ``failure`` or ``timeout``, which prolong the outage; ``unserved`` for
    an answer such as 401 or 429; ``unsuitable`` for one that refuses this very request, such as
    400; ``rejected`` where a limit had no room for it.
    """

    dependency: str
    outcome: str
    duration: float


@dataclass(frozen=True, slots=True)
class FallbackUsed:
    """A function of a chain failed and the next is called; `reason` is the error's class."""

    dependency: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True)
class HedgeSent:
    """An answer is late, and a second call is sent for it."""

    dependency: str


@dataclass(frozen=True, slots=True)
class StaleAnswerServed:
    """A chain whose functions all failed returned an answer of `source`, `age` seconds old."""

    dependency: str
    source: str
    age: float


@dataclass(frozen=True, slots=True)
class RecoveryCompleted:
    """Documents of a LightRAG's workspace were resumed, or tried again.

    Attributes:
        workspace: The LightRAG's.
        resumed: Documents whose ingest was interrupted.
        requeued: Failed documents that are tried again.
        given_up: Failed documents that are not tried again.
        parsed_anew: Degraded documents that are parsed again.
    """

    workspace: str
    resumed: int
    requeued: int
    given_up: int
    parsed_anew: int = 0


@dataclass(frozen=True, slots=True)
class DocumentDegraded:
    """LightRAG's own parser has read a document of a workspace, as `dependency` was down."""

    workspace: str
    dependency: str


@dataclass(frozen=True, slots=True)
class DocumentsCounted:
    """`count` documents of a LightRAG's workspace have `status`, such as ``failed``."""

    workspace: str
    status: str
    count: int


@dataclass(frozen=True, slots=True)
class QueryCompleted:
    """A query of a protected LightRAG is over.

    Attributes:
        workspace: The LightRAG's.
        outcome: ``success``, ``degraded`` for an answer made without an unavailable dependency,
            or ``failed``.
        duration: Seconds to the answer, or to its first words.
        tokens: Of its answers from models.
        wasted_tokens: Of attempts whose answers were not used.
    """

    workspace: str
    outcome: str
    duration: float
    tokens: int = 0
    wasted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DocumentProcessed:
    """LightRAG's pipeline is done with a document, or gave it up; tokens as in `QueryCompleted`."""

    workspace: str
    tokens: int
    wasted_tokens: int


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """Emitted when the drain's phase or its number of in-flight items, `left`, changes."""

    phase: str
    left: int


@dataclass(frozen=True, slots=True)
class DrainEnded:
    """A drain is over: what became of the work in flight, and the seconds it took."""

    drained: int
    abandoned: int
    stuck: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkAbandoned:
    """A drain abandoned a piece of work; `kind`, such as ``call``, is that of the journal."""

    kind: str


Event = (
    CallSucceeded
    | AttemptFailed
    | CallFailed
    | CallAdmitted
    | RetryScheduled
    | AttemptRejected
    | TokensUsed
    | StateChanged
    | HealthChanged
    | FallbackUsed
    | HedgeSent
    | StaleAnswerServed
    | RecoveryCompleted
    | ProbeSent
    | BackgroundProbeEnded
    | DocumentsCounted
    | QueryCompleted
    | DocumentProcessed
    | DocumentDegraded
    | DrainProgress
    | DrainEnded
    | WorkAbandoned
)
"""Any event."""
Listener = Callable[[Event], None]
"""What `Events.subscribe` takes: called with each event, and it must not block."""
_OF_TOKENS = frozenset({TokensUsed, QueryCompleted, DocumentProcessed})
Counter = Callable[[str, float, int], None]
"""Called with each success: the dependency, the duration in seconds, and the tokens used."""


def _must_be_plain(listener: object, what: str) -> None:
    if not callable(listener) or iscoroutinefunction(listener):
        found = "a coroutine function" if callable(listener) else f"a {type(listener).__name__}"
        raise UnsupportedCallError(f"{what} must be a plain function, called at once, not {found}")


class Events:
    """Calls every listener with each event; a listener that raises is logged once and dropped.

    Attributes:
        subscribers: All listeners.
        subscribed: The kinds of events with a listener; others need not be made.
        counts_tokens: Whether there is a listener for tokens, of attempts, queries or documents.
        succeeded: Publishes a success, by the fields of a `CallSucceeded`; None without a listener
            or counter. Every call reads it, so that without one a success costs one comparison.
    """

    def __init__(self) -> None:
        self.subscribers: tuple[Listener, ...] = ()
        self.subscribed: frozenset[type[Event]] = frozenset()
        self.counts_tokens = False
        self.succeeded: Counter | None = None
        self._subscriptions: tuple[tuple[Listener, tuple[type, ...]], ...] = ()
        self._counters: tuple[Counter, ...] = ()
        self._listeners: dict[type, tuple[Listener, ...]] = {}

    def subscribe(self, listener: Listener, *kinds: type[Event]) -> Callable[[], None]:
        """Call `listener` with every event from now on; returns a function that unsubscribes it.

        With `kinds`, call it with events of these only: others then cost nothing.

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
            self._subscriptions += ((listener, kinds or get_args(Event)),)
            self._index()
        return lambda: self._drop(listener)

    def count(self, counter: Counter) -> Callable[[], None]:
        """Call `counter` with each success, without an event; returns a function that ends that.

        For listeners that must cost little: nearly all events are successes.

        Raises:
            UnsupportedCallError: It is no plain function.
        """
        _must_be_plain(counter, "A counter")
        self._counters += (counter,)
        self._index()
        return lambda: self._drop(counter)

    def publish(self, event: Event) -> None:
        """Call the listeners of this kind of event. An error of a listener is never raised."""
        if isinstance(event, CallSucceeded):
            self._count(event.dependency, event.duration, event.tokens)
        self._deliver(event)

    def _deliver(self, event: Event) -> None:
        for listener in self._listeners.get(event.__class__, ()):
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener must not fail the call
                self._drop_failed(listener)

    def _count(self, dependency: str, duration: float, tokens: int) -> None:
        for counter in self._counters:
            try:
                counter(dependency, duration, tokens)
            except Exception:  # noqa: BLE001 - a listener must not fail the call
                self._drop_failed(counter)

    def _count_and_deliver(self, dependency: str, duration: float, tokens: int) -> None:
        self.publish(CallSucceeded(dependency, duration, tokens))

    def _drop_failed(self, listener: object) -> None:
        self._drop(listener)
        _log.exception("A listener of lightrag_resilience failed and is dropped")

    def _drop(self, dropped: object) -> None:
        self._subscriptions = tuple(
            wanted for wanted in self._subscriptions if wanted[0] != dropped
        )
        self._counters = tuple(counter for counter in self._counters if counter != dropped)
        self._index()

    def _index(self) -> None:
        self.subscribers = tuple(listener for listener, _ in self._subscriptions)
        self._listeners = {
            kind: tuple(listener for listener, kinds in self._subscriptions if kind in kinds)
            for kind in get_args(Event)
        }
        self.subscribed = frozenset(
            kind for kind, listeners in self._listeners.items() if listeners
        )
        self.counts_tokens = not _OF_TOKENS.isdisjoint(self.subscribed)
        if CallSucceeded in self.subscribed:
            self.succeeded = self._count_and_deliver
        else:
            is_counted = self._counters or self.counts_tokens
            self.succeeded = self._count if is_counted else None
