"""Kinds: how a callable gives its result, whatever it is wrapped in."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import typing
from asyncio import gather as all_of
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
)
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import anyio
import pytest

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

if TYPE_CHECKING:
    from nowhere import Nowhere  # type: ignore[import-not-found]

pytestmark = pytest.mark.anyio


async def coroutine_of_iterator() -> AsyncIterator[str]:
    return generator("x")


def iterable() -> AsyncIterable[str]:
    return generator("x")


def generator_maker() -> AsyncGenerator[str, None]:
    return generator("x")


def old_iterator() -> typing.AsyncIterator[str]:
    return generator("x")


def bare_iterator() -> AsyncIterator:  # type: ignore[type-arg]
    return generator("x")


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


def annotated_task() -> asyncio.Task[str]:
    return asyncio.create_task(coroutine("x"))


def bare_awaitable() -> Awaitable:  # type: ignore[type-arg]
    return coroutine("x")


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


vars(marked)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]


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
def test_the_kind_of_a_callable(function: Callable[..., Any], kind: Kind) -> None:
    assert kind_of(function) is kind


@pytest.mark.parametrize(("function", "kind"), KINDS, ids=without_address)
def test_a_partial_has_the_kind_of_its_function(function: Callable[..., Any], kind: Kind) -> None:
    assert kind_of(functools.partial(function)) is kind
    assert kind_of(functools.partial(functools.partial(function), end="?")) is kind


async def test_a_mock_of_a_coroutine_function_is_a_coroutine_function() -> None:
    mock = AsyncMock(return_value="x")
    assert kind_of(mock) is Kind.COROUTINE
    assert await as_coroutine_function(mock)(1) == "x"
    mock.assert_awaited_once_with(1)


def test_a_nested_partial_with_attributes_has_the_kind_of_its_function() -> None:
    inner = functools.partial(generator)
    vars(inner)["embedding_dim"] = 8
    assert kind_of(functools.partial(inner, "word")) is Kind.ASYNC_GENERATOR


def test_annotations_that_are_objects_are_understood_like_strings() -> None:
    def annotated() -> None: ...

    annotated.__annotations__["return"] = AsyncIterator[str]
    assert kind_of(annotated) is Kind.STREAM


@pytest.mark.parametrize(
    ("cls", "streams"), [(Child, True), (AsyncGenerator, True), (str, False), (Plain, False)]
)
def test_async_iterables_are_streams(cls: Any, streams: bool) -> None:  # noqa: FBT001
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
