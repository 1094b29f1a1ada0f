"""Callables made awaitable: where they run, and what comes of their results."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
)
from contextvars import ContextVar
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import anyio
import pytest

from lightrag_resilience import Guards, UnsupportedCallError, resilient, with_fallbacks
from lightrag_resilience.runtime.callables import Kind, as_coroutine_function, is_stream, kind_of
from support.callables import (
    AwaitedInstance,
    Plain,
    Wrapping,
    annotated_future,
    awaitable,
    awaiting,
    coroutine,
    generator,
    iterator,
    marked,
    old_coroutine,
    passing_on,
    sync,
    unannotated_future,
)
from support.names import without_address

pytestmark = pytest.mark.anyio
role = ContextVar("role", default="none")


vars(marked)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]


def failing() -> None:
    raise LookupError("of the function")


def test_a_coroutine_function_is_its_own_coroutine_function() -> None:
    assert as_coroutine_function(coroutine) is coroutine
    assert as_coroutine_function(awaiting(coroutine)) is not coroutine


@pytest.mark.parametrize(
    "function",
    [coroutine, sync, functools.partial(sync), passing_on(coroutine), passing_on(sync)],
)
async def test_any_function_can_be_awaited_with_its_arguments(
    function: Callable[..., Any],
) -> None:
    assert await as_coroutine_function(function)("word", end="?") == "word?"


@pytest.mark.parametrize(
    "function",
    [generator, iterator, functools.partial(generator), passing_on(generator)],
    ids=["generator", "iterator", "partial", "wrapped"],
)
async def test_a_stream_is_returned_before_its_first_item(function: Callable[..., Any]) -> None:
    stream = await as_coroutine_function(function)("word", end="?")
    assert [item async for item in stream] == ["word", "?"]


async def test_a_function_that_returns_an_awaitable_is_awaited_to_the_end() -> None:
    assert await as_coroutine_function(awaitable)("word") == "word!"


@pytest.mark.parametrize(
    "function",
    [
        *(annotated_future, unannotated_future, old_coroutine, marked, AwaitedInstance),
        *(Wrapping(coroutine), Plain().passed_on, functools.partial(annotated_future)),
    ],
    ids=without_address,
)
async def test_an_awaitable_is_made_and_awaited_on_the_callers_loop(function: Any) -> None:
    assert (await as_coroutine_function(function)("word")).rstrip("!") == "word"


async def test_the_result_of_a_wrapper_is_what_it_made_of_its_awaitable() -> None:
    @functools.wraps(coroutine)
    def described(word: str) -> str:
        return f"about {word}"

    assert await as_coroutine_function(described)("word") == "about word"


async def test_a_sync_function_runs_in_a_thread_of_its_own_with_the_callers_context() -> None:
    token = role.set("caller")
    try:
        thread, seen = await as_coroutine_function(lambda: (threading.get_ident(), role.get()))()
    finally:
        role.reset(token)
    assert (thread != threading.get_ident(), seen) == (True, "caller")


async def test_a_stream_is_made_on_the_event_loop() -> None:
    def make() -> AsyncIterator[str]:
        asyncio.get_running_loop()
        return generator("x")

    assert is_stream((await as_coroutine_function(make)()).__class__)


async def test_an_error_of_a_sync_function_is_raised() -> None:
    with pytest.raises(LookupError, match="of the function"):
        await as_coroutine_function(failing)()


async def test_a_cancelled_call_does_not_wait_for_its_thread() -> None:
    loop, released, ended = asyncio.get_running_loop(), threading.Event(), threading.Event()
    scope = anyio.CancelScope()

    def block() -> None:
        loop.call_soon_threadsafe(scope.cancel)
        released.wait(10)
        ended.set()

    try:
        with scope:
            await as_coroutine_function(block)()
        assert scope.cancelled_caught
        assert not ended.is_set()
    finally:
        released.set()
    assert ended.wait(10)


@pytest.mark.anyio
async def test_a_coroutine_that_leads_to_a_stream_is_awaited() -> None:
    async def words() -> AsyncIterator[str]:
        yield "word"

    async def connect() -> AsyncIterator[str]:
        return words()

    def begin() -> AsyncIterator[str]:
        return connect()  # type: ignore[return-value]

    stream = await as_coroutine_function(begin)()
    assert [word async for word in stream] == ["word"]


@pytest.mark.anyio
async def test_a_function_may_have_arguments_of_any_name() -> None:
    def named(**kwargs: int) -> dict[str, int]:
        return kwargs

    arguments = {"function": 1, "in_shared_threads": 2, "self": 3}
    assert await as_coroutine_function(named)(**arguments) == arguments


# ---------------------------------------------------------------------- objects that can do much


class Awaited:
    """As aiohttp's and openai's methods return: made to be awaited, or entered."""

    def __await__(self) -> Any:
        return asyncio.sleep(0, "answer").__await__()

    def __aiter__(self) -> Any:
        raise NotImplementedError


def get_awaited() -> Awaited:
    return Awaited()


async def test_a_result_whose_class_can_be_awaited_is_awaited() -> None:
    assert kind_of(get_awaited) is Kind.COROUTINE
    assert await as_coroutine_function(get_awaited)() == "answer"
    assert await resilient("x", registry=Guards())(get_awaited)() == "answer"


class Connection:
    """As of websockets: its user speaks first."""

    def __aiter__(self) -> Any:
        raise NotImplementedError

    async def send(self, text: str) -> None: ...


@pytest.mark.parametrize("result", [Connection(), MagicMock(), AsyncMock(), {"a": MagicMock()}])
async def test_connections_and_mocks_are_returned_unchanged(result: Any) -> None:
    async def answer() -> Any:
        return result

    registry = Guards()
    assert await registry.get("x").call(answer) is result
    assert await registry.get("x").call(lambda: result) is result


class Odd:
    """It has an answer for each name, as of remote procedures."""

    def __getattr__(self, name: str) -> int:
        return 1

    def __call__(self) -> str:
        return "answer"


@pytest.mark.parametrize(
    "odd", [Odd(), Mock(return_value="answer"), MagicMock(return_value="answer", spec=len)]
)
def test_a_callable_with_odd_names_can_be_guarded(odd: Any) -> None:
    registry = Guards()
    assert resilient("x", registry=registry)(odd)() == "answer"
    assert with_fallbacks(odd, registry=registry)() == "answer"


async def test_a_mock_of_a_coroutine_function_can_be_guarded() -> None:
    async def function() -> str:
        raise NotImplementedError

    mock = AsyncMock(spec=function, return_value="answer")
    assert await resilient("x", registry=Guards())(mock)() == "answer"


def test_a_wrapper_of_a_context_manager_is_refused_too() -> None:
    @contextlib.asynccontextmanager
    async def connected() -> Any:
        yield

    @functools.wraps(connected)
    def passed_on(*args: Any) -> Any:
        return connected(*args)

    with pytest.raises(UnsupportedCallError, match="makes a context manager"):
        kind_of(passed_on)
