"""Callables of every kind."""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
)
from typing import Any


async def coroutine(word: str, *, end: str = "!") -> str:
    return word + end


async def generator(word: str, *, end: str = "!") -> AsyncGenerator[str, None]:
    yield word
    yield end


def iterator(word: str, *, end: str = "!") -> AsyncIterator[str]:
    return generator(word, end=end)


def sync(word: str, *, end: str = "!") -> str:
    return word + end


def awaitable(word: str) -> Coroutine[Any, Any, str]:
    return coroutine(word)


def annotated_future(word: str) -> asyncio.Future[str]:
    return asyncio.ensure_future(coroutine(word))


def unannotated_future(word):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return asyncio.ensure_future(coroutine(word))


@types.coroutine
def old_coroutine(word: str) -> Iterator[Any]:
    return (yield from coroutine(word).__await__())  # type: ignore[return-value]


def marked(word: str) -> Any:
    """As a coroutine function that Cython has compiled."""
    return coroutine(word)


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


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


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


def awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper
