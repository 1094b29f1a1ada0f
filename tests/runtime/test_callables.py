"""Kinds: how a callable gives its result, whatever it is wrapped in."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import types
import typing
from asyncio import gather as all_of
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
)
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, MagicMock, Mock

import anyio
import pytest

from lightrag_resilience import Guards, UnsupportedCallError, resilient, with_fallbacks
from lightrag_resilience.runtime.callables import Kind, as_coroutine_function, is_stream, kind_of
from support.names import without_address

if TYPE_CHECKING:
    from nowhere import Nowhere  # type: ignore[import-not-found]

pytestmark = pytest.mark.anyio
who = ContextVar("who", default="nobody")


async def coroutine(word: str, *, end: str = "!") -> str:
    return word + end


async def coroutine_of_iterator() -> AsyncIterator[str]:
    return generator("x")


async def generator(word: str, *, end: str = "!") -> AsyncGenerator[str, None]:
    yield word
    yield end


def iterator(word: str, *, end: str = "!") -> AsyncIterator[str]:
    return generator(word, end=end)


def iterable() -> AsyncIterable[str]:
    return generator("x")


def generator_maker() -> AsyncGenerator[str, None]:
    return generator("x")


def old_iterator() -> typing.AsyncIterator[str]:
    return generator("x")


def bare_iterator() -> AsyncIterator:  # type: ignore[type-arg]
    return generator("x")


def sync(word: str, *, end: str = "!") -> str:
    return word + end


def unresolvable() -> Nowhere:
    return None


def sync_iterator() -> Iterator[str]:
    return iter("x")


def maybe_iterator() -> AsyncIterator[str] | str:
    return "x"


def unannotated(word):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return word


def takes_iterator(words: AsyncIterator[str]) -> None:
    del words


def awaitable(word: str) -> Coroutine[Any, Any, str]:
    return coroutine(word)


def annotated_future(word: str) -> asyncio.Future[str]:
    return asyncio.ensure_future(coroutine(word))


def annotated_task() -> asyncio.Task[str]:
    return asyncio.create_task(coroutine("x"))


def bare_awaitable() -> Awaitable:  # type: ignore[type-arg]
    return coroutine("x")


def unannotated_future(word):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return asyncio.ensure_future(coroutine(word))


def in_executor(word):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return asyncio.get_running_loop().run_in_executor(None, sync, word)


def in_thread() -> Awaitable[str]:
    return anyio.to_thread.run_sync(sync, "x")


def in_context() -> AsyncIterator[str]:
    return contextvars.copy_context().run(generator, "x")


class Tasks:
    """A client of a service, whose methods are called as asyncio's functions."""

    def create_task(self, word: str) -> str:
        return word

    def gather(self, *words: str) -> list[str]:
        return [*words]


def creates_a_task_elsewhere(word):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return Tasks().create_task(word)


def gathers_elsewhere(word):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return Tasks().gather(word)


def gathers_here(word):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return all_of(coroutine(word))


def waits_for_a_result(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return pool.submit(function, *args).result()

    return call


def runs_in_a_portal(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with anyio.from_thread.start_blocking_portal() as portal:
            return portal.call(function, *args)

    return call


pool: Any = None


@types.coroutine
def old_coroutine(word: str) -> Iterator[Any]:
    return (yield from coroutine(word).__await__())  # type: ignore[return-value]


def marked(word: str) -> Any:
    """As a coroutine function that Cython has compiled."""
    return coroutine(word)


vars(marked)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]


class AwaitedInstance:
    def __init__(self, word: str) -> None:
        self.word = word

    def __await__(self) -> Any:
        return coroutine(self.word).__await__()


class Wrapping:
    """A decorator that is a class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def failing() -> None:
    raise LookupError("of the function")


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def running(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return wrapper


def sync_items() -> Iterator[str]:
    yield "x"


@functools.wraps(sync_items)
def listing() -> list[str]:
    return list(sync_items())


def round_and_round() -> Callable[..., Any]:
    def function() -> None: ...

    vars(function)["__wrapped__"] = function
    return function


class Plain:
    @passing_on
    async def passed_on(self, word: str) -> str:
        return word

    async def coroutine(self, word: str) -> str:
        return word

    async def generator(self, word: str) -> AsyncIterator[str]:
        yield word

    def iterator(self, word: str) -> AsyncIterator[str]:
        return self.generator(word)

    def sync(self, word: str) -> str:
        return word

    @classmethod
    async def of_class(cls) -> None: ...

    @staticmethod
    async def static(word: str) -> str:
        return word

    @staticmethod
    def static_iterator() -> AsyncIterator[str]:
        return generator("x")

    @classmethod
    def sync_of_class(cls) -> None: ...


class CallsCoroutine:
    async def __call__(self, word: str) -> str:
        return word


class CallsGenerator:
    async def __call__(self, word: str) -> AsyncIterator[str]:
        yield word


class CallsIterator:
    def __call__(self, word: str) -> AsyncIterator[str]:
        return generator(word)


class CallsSync:
    def __call__(self, word: str) -> str:
        return word


class Child(CallsCoroutine):
    async def __aiter__(self) -> AsyncIterator[str]:
        yield "x"


def awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


KINDS: list[tuple[Callable[..., Any], Kind]] = [
    (coroutine, Kind.COROUTINE),
    (coroutine_of_iterator, Kind.COROUTINE),
    (generator, Kind.ASYNC_GENERATOR),
    (iterator, Kind.STREAM),
    (iterable, Kind.STREAM),
    (generator_maker, Kind.STREAM),
    (old_iterator, Kind.STREAM),
    (bare_iterator, Kind.STREAM),
    (sync, Kind.SYNC),
    (unresolvable, Kind.SYNC),
    (sync_iterator, Kind.SYNC),
    (maybe_iterator, Kind.SYNC),
    (unannotated, Kind.SYNC),
    (takes_iterator, Kind.SYNC),
    (awaitable, Kind.COROUTINE),
    (annotated_future, Kind.COROUTINE),
    (annotated_task, Kind.COROUTINE),
    (bare_awaitable, Kind.COROUTINE),
    (unannotated_future, Kind.COROUTINE),
    (in_executor, Kind.COROUTINE),
    (old_coroutine, Kind.COROUTINE),
    (marked, Kind.COROUTINE),
    (AwaitedInstance, Kind.COROUTINE),
    (Child, Kind.STREAM),
    (Wrapping(coroutine), Kind.COROUTINE),
    (Wrapping(sync), Kind.SYNC),
    (Plain().passed_on, Kind.COROUTINE),
    (Plain.passed_on, Kind.COROUTINE),
    (lambda: None, Kind.SYNC),
    (len, Kind.SYNC),
    ("x".join, Kind.SYNC),
    (dict, Kind.SYNC),
    (Plain, Kind.SYNC),
    (CallsCoroutine, Kind.SYNC),
    (Plain().coroutine, Kind.COROUTINE),
    (Plain().generator, Kind.ASYNC_GENERATOR),
    (Plain().iterator, Kind.STREAM),
    (Plain().sync, Kind.SYNC),
    (Plain.coroutine, Kind.COROUTINE),
    (Plain.of_class, Kind.COROUTINE),
    (Plain.static, Kind.COROUTINE),
    (Plain().static, Kind.COROUTINE),
    (Plain.static_iterator, Kind.STREAM),
    (Plain.sync_of_class, Kind.SYNC),
    (CallsCoroutine(), Kind.COROUTINE),
    (CallsGenerator(), Kind.ASYNC_GENERATOR),
    (CallsIterator(), Kind.STREAM),
    (CallsSync(), Kind.SYNC),
    (Child(), Kind.COROUTINE),
    (passing_on(iterator), Kind.STREAM),
    (passing_on(sync), Kind.SYNC),
    (passing_on(coroutine), Kind.COROUTINE),
    (passing_on(passing_on(coroutine)), Kind.COROUTINE),
    (passing_on(coroutine_of_iterator), Kind.COROUTINE),
    (passing_on(generator), Kind.ASYNC_GENERATOR),
    (passing_on(functools.partial(coroutine)), Kind.COROUTINE),
    (passing_on(CallsCoroutine()), Kind.COROUTINE),
    (in_thread, Kind.COROUTINE),
    (in_context, Kind.STREAM),
    (gathers_here, Kind.COROUTINE),
    (creates_a_task_elsewhere, Kind.SYNC),
    (gathers_elsewhere, Kind.SYNC),
    (running(coroutine), Kind.SYNC),
    (waits_for_a_result(coroutine), Kind.SYNC),
    (runs_in_a_portal(coroutine), Kind.SYNC),
    (passing_on(running(coroutine)), Kind.SYNC),
    (listing, Kind.SYNC),
    (round_and_round(), Kind.SYNC),
    (awaiting(coroutine), Kind.COROUTINE),
    (awaiting(awaiting(coroutine)), Kind.COROUTINE),
]


@pytest.mark.parametrize(("function", "kind"), KINDS, ids=without_address)
def test_the_kind_of_a_callable_is_known(function: Callable[..., Any], kind: Kind) -> None:
    assert kind_of(function) is kind


@pytest.mark.parametrize(("function", "kind"), KINDS, ids=without_address)
def test_a_partial_is_of_the_kind_it_is_a_partial_of(
    function: Callable[..., Any], kind: Kind
) -> None:
    assert kind_of(functools.partial(function)) is kind
    assert kind_of(functools.partial(functools.partial(function), end="?")) is kind


async def test_a_mock_of_a_coroutine_function_is_one() -> None:
    mock = AsyncMock(return_value="x")
    assert kind_of(mock) is Kind.COROUTINE
    assert await as_coroutine_function(mock)(1) == "x"
    mock.assert_awaited_once_with(1)


def test_a_partial_of_a_partial_with_attributes_is_of_the_inner_kind() -> None:
    inner = functools.partial(generator)
    vars(inner)["embedding_dim"] = 8
    assert kind_of(functools.partial(inner, "word")) is Kind.ASYNC_GENERATOR


def test_annotations_that_are_objects_are_understood_like_strings() -> None:
    def annotated() -> None: ...

    annotated.__annotations__["return"] = AsyncIterator[str]
    assert kind_of(annotated) is Kind.STREAM


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
async def test_a_stream_is_handed_over_unstarted(function: Callable[..., Any]) -> None:
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


async def test_what_a_wrapper_did_with_its_awaitable_is_its_result() -> None:
    @functools.wraps(coroutine)
    def described(word: str) -> str:
        return f"about {word}"

    assert await as_coroutine_function(described)("word") == "about word"


async def test_a_sync_function_runs_in_a_thread_of_its_own_with_the_callers_context() -> None:
    token = who.set("caller")
    try:
        place, seen = await as_coroutine_function(lambda: (threading.get_ident(), who.get()))()
    finally:
        who.reset(token)
    assert (place != threading.get_ident(), seen) == (True, "caller")


async def test_a_stream_is_made_on_the_event_loop() -> None:
    def make() -> AsyncIterator[str]:
        asyncio.get_running_loop()
        return generator("x")

    assert is_stream((await as_coroutine_function(make)()).__class__)


async def test_what_a_sync_function_raises_comes_through() -> None:
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


@pytest.mark.parametrize(
    ("cls", "streams"), [(Child, True), (AsyncGenerator, True), (str, False), (Plain, False)]
)
def test_what_can_be_iterated_over_asynchronously_is_a_stream(cls: Any, streams: bool) -> None:  # noqa: FBT001
    assert is_stream(cls) is streams


@pytest.mark.parametrize("annotation", [[str], {"a": int}])
def test_an_annotation_that_is_no_type_is_no_stream(annotation: Any) -> None:
    def annotated() -> None: ...

    annotated.__annotations__["return"] = annotation
    assert kind_of(annotated) is Kind.SYNC


def test_a_stream_is_known_by_a_name_that_exists_for_type_checkers_only() -> None:
    def annotated() -> None: ...

    for text in ("Awaitable[Missing]", "Coroutine[Any, Any, Missing]", "asyncio.Future[Missing]"):
        annotated.__annotations__["return"] = text
        assert kind_of(annotated) is Kind.COROUTINE
    for text in ("AsyncIterator[str]", "typing.AsyncGenerator[Missing, None]", "abc.AsyncIterable"):
        annotated.__annotations__["return"] = text
        assert kind_of(annotated) is Kind.STREAM
    for text in ("Missing[AsyncIterator[str]]", "concurrent.futures.Future[Missing]"):
        annotated.__annotations__["return"] = text
        assert kind_of(annotated) is Kind.SYNC


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
async def test_what_is_written_to_and_mocks_come_back_as_they_are(result: Any) -> None:
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


def test_what_passes_a_context_manager_on_is_refused_too() -> None:
    @contextlib.asynccontextmanager
    async def connected() -> Any:
        yield

    @functools.wraps(connected)
    def passed_on(*args: Any) -> Any:
        return connected(*args)

    with pytest.raises(UnsupportedCallError, match="makes a context manager"):
        kind_of(passed_on)
