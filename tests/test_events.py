"""Events: which listeners receive them, for how long, and how little they carry."""

from __future__ import annotations

import dataclasses
import logging
import typing

import pytest

from lightrag_resilience import BreakerPolicy, Policy, RetryPolicy
from lightrag_resilience.events import (
    AttemptFailed,
    AttemptRejected,
    CallFailed,
    CallSucceeded,
    Event,
    Events,
    RetryScheduled,
    StateChanged,
)
from lightrag_resilience.pipeline.guard import Guard

EVENT = CallSucceeded("llm.openai", 0.25)
OTHER = AttemptRejected("llm.openai", "CircuitOpenError")


async def no_sleep(seconds: float) -> None:
    """Waits no time."""


@pytest.fixture
def events() -> Events:
    return Events()


def test_every_listener_gets_every_event_in_order(events: Events) -> None:
    first: list[Event] = []
    second: list[Event] = []
    events.subscribe(first.append)
    events.subscribe(second.append)
    events.publish(EVENT)
    events.publish(OTHER)
    assert first == second == [EVENT, OTHER]


def test_listeners_are_called_in_order_of_subscription(events: Events) -> None:
    calls: list[str] = []
    events.subscribe(lambda _: calls.append("first"))
    events.subscribe(lambda _: calls.append("second"))
    events.publish(EVENT)
    assert calls == ["first", "second"]


def test_a_listener_gets_events_only_while_subscribed(events: Events) -> None:
    published: list[Event] = []
    events.publish(EVENT)
    unsubscribe = events.subscribe(published.append)
    events.publish(OTHER)
    unsubscribe()
    events.publish(EVENT)
    assert published == [OTHER]
    assert events.subscribers == ()


def test_unsubscribing_leaves_the_others_and_may_be_repeated(events: Events) -> None:
    published: list[Event] = []
    unsubscribe = events.subscribe(lambda _: None)
    events.subscribe(published.append)
    unsubscribe()
    unsubscribe()
    events.publish(EVENT)
    assert published == [EVENT]


def test_a_listener_that_raises_is_dropped_and_reported_once(
    events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    published: list[Event] = []
    also: list[Event] = []

    def broken(_: Event) -> None:
        calls.append("broken")
        raise ZeroDivisionError("a bug in a listener")

    events.subscribe(published.append)
    events.subscribe(broken)
    events.subscribe(also.append)
    with caplog.at_level(logging.DEBUG):
        events.publish(EVENT)
        events.publish(OTHER)
    assert calls == ["broken"]
    assert published == also == [EVENT, OTHER]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("lightrag_resilience", "ERROR")
    assert record.getMessage() == "A listener of lightrag_resilience failed and is dropped"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_an_interruption_inside_a_listener_is_not_swallowed(events: Events) -> None:
    def interrupted(_: Event) -> None:
        raise KeyboardInterrupt

    events.subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        events.publish(EVENT)
    assert events.subscribers == (interrupted,)


def test_a_listener_may_unsubscribe_itself_during_an_event(events: Events) -> None:
    published: list[Event] = []
    calls: list[Event] = []

    def once(event: Event) -> None:
        calls.append(event)
        unsubscribe()

    unsubscribe = events.subscribe(once)
    events.subscribe(published.append)
    events.publish(EVENT)
    events.publish(OTHER)
    assert (calls, published) == ([EVENT], [EVENT, OTHER])


@pytest.mark.parametrize("event", typing.get_args(Event))
def test_an_event_is_frozen_and_holds_names_and_numbers_only(event: type) -> None:
    fields = typing.get_type_hints(event)
    assert set(fields.values()) <= {str, int, float}
    subject = next(iter(fields))
    assert subject in {"dependency", "workspace", "phase", "drained", "kind"}
    made = event(*(kind() for kind in fields.values()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, subject, "other")
    assert not hasattr(made, "__dict__")


@pytest.mark.anyio
async def test_no_event_of_a_guard_holds_arguments_or_results(events: Events) -> None:
    published: list[Event] = []
    events.subscribe(published.append)
    policy = Policy(
        retry=RetryPolicy(attempts=2, jitter="none"),
        breaker=BreakerPolicy(consecutive_failures=2),
    )
    guard = Guard("llm.openai", policy, events=events, sleep=no_sleep)

    async def answer(prompt: str) -> str:
        return f"secret answer to {prompt}"

    async def fail(prompt: str) -> str:
        raise ConnectionError(f"secret detail of {prompt}")

    await guard.call(answer, "secret prompt")
    with pytest.raises(ConnectionError):
        await guard.call(fail, "secret prompt")
    with pytest.raises(Exception, match="is open"):
        await guard.call(answer, "secret prompt")
    assert [type(event) for event in published] == [
        CallSucceeded,
        AttemptFailed,
        RetryScheduled,
        *(StateChanged, AttemptFailed),
        *(CallFailed, AttemptRejected),
    ]
    assert "secret" not in repr(published)


def test_a_listener_subscribed_twice_is_called_once(events: Events) -> None:
    published: list[Event] = []
    first, second = events.subscribe(published.append), events.subscribe(published.append)
    events.publish(CallSucceeded("llm", 1.0))
    assert len(published) == 1
    first()
    second()
    assert events.subscribers == ()


def test_a_listener_for_some_kinds_gets_no_other(events: Events) -> None:
    published: list[Event] = []
    stop = events.subscribe(published.append, AttemptRejected)
    assert events.succeeded is None
    assert events.subscribed == {AttemptRejected}
    events.publish(EVENT)
    events.publish(OTHER)
    assert published == [OTHER]
    stop()
    assert events.subscribed == set()
    assert events.subscribers == ()


def test_a_counter_gets_successes_only_with_a_listener_and_without(
    events: Events,
) -> None:
    counted: list[tuple[str, float, int]] = []
    published: list[Event] = []
    stop_counting = events.count(lambda *fields: counted.append(fields))
    events.publish(OTHER)
    assert events.succeeded is not None
    events.succeeded("llm", 1.0, 2)
    stop = events.subscribe(published.append)
    events.succeeded("llm", 3.0, 4)
    events.publish(CallSucceeded("llm", 5.0, 6))
    assert counted == [("llm", 1.0, 2), ("llm", 3.0, 4), ("llm", 5.0, 6)]
    assert published == [CallSucceeded("llm", 3.0, 4), CallSucceeded("llm", 5.0, 6)]
    stop()
    stop_counting()
    assert events.succeeded is None


def test_a_counter_that_raises_is_dropped_and_reported_once(
    events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(dependency: str, duration: float, tokens: int) -> None:
        raise ZeroDivisionError

    events.count(broken)
    assert events.succeeded is not None
    events.succeeded("llm", 1.0, 0)
    assert events.succeeded is None
    assert caplog.messages == ["A listener of lightrag_resilience failed and is dropped"]
