"""What listeners are told of a call. Nothing is built without a listener."""

from __future__ import annotations

from typing import Protocol

from lightrag_resilience.errors import CallRejected
from lightrag_resilience.events import (
    AttemptFailed,
    AttemptRejected,
    CallAdmitted,
    CallFailed,
    Events,
    ProbeSent,
    RetryScheduled,
)
from lightrag_resilience.failures.classifier import Failure, root_cause
from lightrag_resilience.runtime.request_id import note_id

from .call_context import Call

__all__ = [
    "publish_attempt_failed",
    "publish_attempt_rejected",
    "publish_call_admitted",
    "publish_call_failed",
    "publish_probe_sent",
    "publish_retry_scheduled",
]


class _Publisher(Protocol):
    name: str
    events: Events

    def clock(self) -> float: ...


def publish_attempt_failed(
    guard: _Publisher, error: Exception, failure: Failure, duration: float
) -> None:
    """An attempt failed, after so many seconds."""
    if AttemptFailed in guard.events.subscribed:
        name = type(root_cause(error)).__name__
        kind, status = failure.kind.value, failure.status
        guard.events.publish(AttemptFailed(guard.name, kind, name, duration, status or 0))


def publish_call_failed(guard: _Publisher, call: Call, error: BaseException) -> None:
    """A call is over and its last attempt failed; one that was refused is told of elsewhere."""
    note_id(error)
    if CallFailed in guard.events.subscribed and call.failure is not None:
        lasted = guard.clock() - call.began
        guard.events.publish(CallFailed(guard.name, call.failure.kind.value, lasted))


def publish_attempt_rejected(guard: _Publisher, refusal: type[CallRejected]) -> None:
    """A call was refused before it was sent."""
    if AttemptRejected in guard.events.subscribed:
        guard.events.publish(AttemptRejected(guard.name, refusal.__name__))


def publish_probe_sent(guard: _Publisher) -> None:
    """A half-open circuit let a call through."""
    if ProbeSent in guard.events.subscribed:
        guard.events.publish(ProbeSent(guard.name))


def publish_retry_scheduled(guard: _Publisher, call: Call, attempt: int, wait: float) -> None:
    """An attempt of a call with this number follows in so many seconds."""
    call.attempt = attempt
    if RetryScheduled in guard.events.subscribed:
        guard.events.publish(RetryScheduled(guard.name, attempt, wait))


def publish_call_admitted(guard: _Publisher, call: Call, waited: float) -> None:
    """A call has been in line for so many seconds, and may be sent."""
    if CallAdmitted in guard.events.subscribed:
        guard.events.publish(CallAdmitted(guard.name, waited, call.tokens[0]))
