"""A guarded async generator is still a generator: what is sent or thrown into it reaches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    Guards,
    TimeoutPolicy,
    resilient,
    with_fallbacks,
)
from lightrag_resilience.config.settings import load_settings
from support.guards import guard_on_loop

pytestmark = pytest.mark.anyio

Function = Callable[..., AsyncGenerator[Any, Any]]


@pytest.fixture
def owner() -> Guards:
    return Guards(settings=load_settings({}))


def guarded(function: Function, owner: Guards) -> Function:
    return resilient("storage.db", registry=owner)(function)


def guarded_twice(function: Function, owner: Guards) -> Function:
    return resilient("storage.other", registry=owner)(guarded(function, owner))


def chained(function: Function, owner: Guards) -> Function:
    return with_fallbacks(guarded(function, owner), guarded(function, owner), registry=owner)


WAYS = [guarded, guarded_twice, chained]


def verdict(owner: Guards) -> tuple[int, int]:
    shown = owner.get("storage.db").breaker.snapshot()
    return shown.calls, shown.failed


class Session:
    """What a generator did with the body of its `async with`."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    async def begin(self) -> AsyncGenerator[Any, Any]:
        self.steps.append("begin")
        try:
            self.steps.append(f"received {(yield 'connection')}")
        except KeyError:
            self.steps.append("forgive")
        except ValueError as error:
            self.steps.append("rollback")
            raise ConnectionResetError from error
        except BaseException as error:
            self.steps.append(f"rollback of {type(error).__name__}")
            raise
        else:
            self.steps.append("commit")
        finally:
            self.steps.append("close")


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_of_the_body_reaches_the_generator_and_is_no_verdict(
    way: Any, owner: Guards
) -> None:
    session, original = Session(), LookupError("of the body")
    with pytest.raises(LookupError) as caught:
        async with asynccontextmanager(way(session.begin, owner))():
            raise original
    assert caught.value is original
    assert session.steps == ["begin", "rollback of LookupError", "close"]
    assert verdict(owner) == (0, 0)
    assert not owner.get("storage.db").gate.running


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_that_the_generator_forgives_is_gone(way: Any, owner: Guards) -> None:
    session = Session()
    async with asynccontextmanager(way(session.begin, owner))():
        raise KeyError
    assert session.steps == ["begin", "forgive", "close"]
    assert verdict(owner) == (1, 0)


@pytest.mark.parametrize("way", [guarded, guarded_twice])
async def test_an_error_of_the_rollback_is_the_dependencys(way: Any, owner: Guards) -> None:
    session = Session()
    with pytest.raises(ConnectionResetError):
        async with asynccontextmanager(way(session.begin, owner))():
            raise ValueError
    assert session.steps == ["begin", "rollback", "close"]
    assert verdict(owner) == (1, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [StopAsyncIteration, StopIteration, RuntimeError])
async def test_errors_that_generators_turn_into_others_come_back_as_they_were(
    way: Any, error: type[Exception], owner: Guards
) -> None:
    session, original = Session(), error("of the body")
    with pytest.raises(error) as caught:
        async with asynccontextmanager(way(session.begin, owner))():
            raise original
    assert caught.value is original
    assert verdict(owner) == (0, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_that_ends_well_lets_the_generator_go_on(way: Any, owner: Guards) -> None:
    session = Session()
    async with asynccontextmanager(way(session.begin, owner))() as connection:
        assert connection == "connection"
    assert session.steps == ["begin", "received None", "commit", "close"]
    assert verdict(owner) == (1, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancellation_of_the_body_reaches_the_generator(way: Any, owner: Guards) -> None:
    session = Session()

    async def body() -> None:
        async with asynccontextmanager(way(session.begin, owner))():
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert session.steps == ["begin", "rollback of CancelledError", "close"]
    assert (verdict(owner), task.cancelled()) == ((0, 0), True)


@pytest.mark.parametrize("way", WAYS)
async def test_closing_reaches_the_generator(way: Any, owner: Guards) -> None:
    session = Session()
    stream = way(session.begin, owner)()
    assert await anext(stream) == "connection"
    await stream.aclose()
    assert session.steps == ["begin", "rollback of GeneratorExit", "close"]
    assert verdict(owner) == (0, 0)


async def echo() -> AsyncGenerator[Any, Any]:
    received: Any = "ready"
    while received != "end":
        try:
            received = yield received
        except LookupError:
            received = "forgiven"


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_sent_reaches_the_generator(way: Any, owner: Guards) -> None:
    stream = way(echo, owner)()
    assert await anext(stream) == "ready"
    assert await stream.asend("one") == "one"
    assert await stream.asend(0) == 0
    assert await anext(stream) is None
    assert await stream.athrow(LookupError()) == "forgiven"
    assert await stream.asend("two") == "two"
    with pytest.raises(StopAsyncIteration):
        await stream.asend("end")
    assert verdict(owner) == (1, 0)


async def test_a_stream_that_guard_call_gave_takes_both_too() -> None:
    guard = guard_on_loop()
    stream: Any = await guard.call(echo)
    assert await anext(stream) == "ready"
    assert await stream.asend("one") == "one"
    assert await stream.athrow(LookupError()) == "forgiven"
    original = ValueError("of the reader")
    with pytest.raises(ValueError, match="of the reader") as caught:
        await stream.athrow(original)
    assert caught.value is original
    assert (guard.breaker.snapshot().calls, len(guard.gate.running)) == (0, 0)


async def test_an_error_before_the_first_item_is_read_ends_the_call() -> None:
    guard, session = guard_on_loop(), Session()
    stream: Any = await guard.call(session.begin)
    with pytest.raises(LookupError):
        await stream.athrow(LookupError())
    assert session.steps[-1] == "close"
    assert (guard.breaker.snapshot().calls, len(guard.gate.running)) == (0, 0)


async def test_a_rollback_is_waited_for_no_longer_than_an_item() -> None:
    async def slow() -> AsyncIterator[str]:
        try:
            yield "connection"
        finally:
            await asyncio.sleep(60.0)

    guard = guard_on_loop(timeout=TimeoutPolicy(attempt=5.0, total=None))
    stream: Any = await guard.call(slow)
    await anext(stream)
    with pytest.raises(AttemptTimeoutError):
        await stream.athrow(LookupError())
    assert guard.breaker.snapshot().failed == 1


class Plain:
    """An iterator that is no generator."""

    def __aiter__(self) -> Plain:
        return self

    async def __anext__(self) -> str:
        return "item"


@pytest.mark.parametrize("way", WAYS)
async def test_an_iterator_without_asend_or_aclose_is_read_and_not_closed(
    way: Any, owner: Guards
) -> None:
    def begin() -> AsyncIterator[str]:
        return Plain()

    stream = way(begin, owner)()
    assert await anext(stream) == "item"
    assert await stream.asend("ignored") == "item"
    original = ValueError("of the reader")
    with pytest.raises(ValueError, match="of the reader") as caught:
        await stream.athrow(original)
    assert caught.value is original
    assert (verdict(owner), len(owner.get("storage.db").gate.running)) == ((0, 0), 0)
