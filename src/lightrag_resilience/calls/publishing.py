"""What listeners are told of a call. Nothing is built without a listener."""

from __future__ import annotations

from typing import Protocol

from lightrag_resilience.errors import CallRejected
from lightrag_resilience.events import (
    AttemptFailed,
    CallFailed,
    CallRefused,
    CallWaited,
    Events,
    ProbeSent,
    RetryScheduled,
)
from lightrag_resilience.failures.classifier import Failure, root_cause
from lightrag_resilience.runtime.request_id import note_id

from .call_context import Call

__all__ = ["tell_attempt", "tell_failure", "tell_probe", "tell_refusal", "tell_retry", "tell_wait"]


class _Teller(Protocol):
    name: str
    events: Events

    def clock(self) -> float: ...


def tell_attempt(guard: _Teller, error: Exception, failure: Failure, duration: float) -> None:
    """An attempt failed, after so many seconds."""
    if AttemptFailed in guard.events.heard:
        name = type(root_cause(error)).__name__
        kind, status = failure.kind.value, failure.status
        guard.events.emit(AttemptFailed(guard.name, kind, name, duration, status or 0))


def tell_failure(guard: _Teller, call: Call, error: BaseException) -> None:
    """A call is over and its last attempt failed; one that was refused is told of elsewhere."""
    note_id(error)
    if CallFailed in guard.events.heard and call.failure is not None:
        lasted = guard.clock() - call.began
        guard.events.emit(CallFailed(guard.name, call.failure.kind.value, lasted))


def tell_refusal(guard: _Teller, refusal: type[CallRejected]) -> None:
    """A call was refused before it was sent."""
    if CallRefused in guard.events.heard:
        guard.events.emit(CallRefused(guard.name, refusal.__name__))


def tell_probe(guard: _Teller) -> None:
    """A half-open circuit let a call through."""
    if ProbeSent in guard.events.heard:
        guard.events.emit(ProbeSent(guard.name))


def tell_retry(guard: _Teller, call: Call, attempt: int, wait: float) -> None:
    """An attempt of a call with this number follows in so many seconds."""
    call.attempt = attempt
    if RetryScheduled in guard.events.heard:
        guard.events.emit(RetryScheduled(guard.name, attempt, wait))


def tell_wait(guard: _Teller, call: Call, waited: float) -> None:
    """A call has been in line for so many seconds, and may be sent."""
    if CallWaited in guard.events.heard:
        guard.events.emit(CallWaited(guard.name, waited, call.tokens[0]))
