"""Events of a call, published by its guard. None is built without a subscriber."""

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
    TokensUsed,
)
from lightrag_resilience.failures.classifier import Failure, FailureKind, root_cause
from lightrag_resilience.runtime.request_id import note_id

from .call_context import Call
from .token_account import Use, current_race

__all__ = [
    "publish_attempt_failed",
    "publish_attempt_rejected",
    "publish_call_admitted",
    "publish_call_failed",
    "publish_probe_sent",
    "publish_retry_scheduled",
    "publish_tokens",
    "publish_wasted_tokens",
]


class _Publisher(Protocol):
    name: str
    events: Events

    def clock(self) -> float: ...


def publish_attempt_failed(
    guard: _Publisher, error: Exception, failure: Failure, duration: float
) -> None:
    """Publish that an attempt failed after `duration` seconds."""
    if AttemptFailed in guard.events.subscribed:
        name = type(root_cause(error)).__name__
        kind, status = failure.kind.value, failure.status
        guard.events.publish(AttemptFailed(guard.name, kind, name, duration, status or 0))


def publish_call_failed(guard: _Publisher, call: Call, error: BaseException) -> None:
    """Publish that a call has failed for good. A rejected one has its own event already."""
    note_id(error)
    if CallFailed in guard.events.subscribed and call.failure is not None:
        lasted = guard.clock() - call.began
        guard.events.publish(CallFailed(guard.name, call.failure.kind.value, lasted))


def publish_attempt_rejected(guard: _Publisher, rejection: type[CallRejected]) -> None:
    """Publish that a call was rejected before it was sent."""
    if AttemptRejected in guard.events.subscribed:
        guard.events.publish(AttemptRejected(guard.name, rejection.__name__))


def publish_probe_sent(guard: _Publisher, origin: str = "call") -> None:
    """Publish that a half-open circuit admitted a probe."""
    if ProbeSent in guard.events.subscribed:
        guard.events.publish(ProbeSent(guard.name, origin))


def publish_retry_scheduled(guard: _Publisher, call: Call, attempt: int, wait: float) -> None:
    """Note the number of the next attempt, and publish that it follows in `wait` seconds."""
    call.attempt = attempt
    if RetryScheduled in guard.events.subscribed:
        guard.events.publish(RetryScheduled(guard.name, attempt, wait))


def publish_call_admitted(guard: _Publisher, call: Call, waited: float) -> None:
    """Publish that a call may be sent, after it `waited` so many seconds in the queue."""
    if CallAdmitted in guard.events.subscribed:
        guard.events.publish(CallAdmitted(guard.name, waited, call.tokens[0]))


def publish_tokens(guard: _Publisher, call: Call, use: Use, tokens: int) -> None:
    """Count the tokens of an attempt for its query or document, and publish them."""
    account = call.account
    if account is not None:
        if account.is_abandoned and use == "answer":
            use = "cancelled"
        account.add(use, tokens)
    if TokensUsed in guard.events.subscribed:
        work = "other" if account is None else account.work
        guard.events.publish(TokensUsed(guard.name, work, use, tokens))


def publish_wasted_tokens(guard: _Publisher, call: Call, failure: Failure | None = None) -> None:
    """Count the tokens of an attempt that failed; without a failure, of one that was cancelled.

    A provider that answers with an error has not processed the prompt, by all we know.
    """
    is_lost = failure is None or failure.kind is FailureKind.UNKNOWN_OUTCOME
    tokens = call.reported_tokens
    if tokens is None:
        tokens = call.sent_tokens if is_lost else 0
    if not tokens:
        return
    race = current_race.get()
    use: Use = "cancelled"
    if failure is not None:
        use = "retry" if call.attempt > 1 else "failed"
    elif race is not None and race.is_decided:
        use = "hedge"
    publish_tokens(guard, call, use, tokens)
