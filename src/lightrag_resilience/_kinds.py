"""What kind of callable a function is, and how to call any kind as a coroutine function."""

from __future__ import annotations

import enum
import functools
import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread

from ._in_threads import in_this_thread

__all__ = ["Kind", "as_coroutine_function", "is_stream", "kind_of"]

_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)
_STREAM_NAMES = frozenset(stream.__name__ for stream in _STREAMS)


class Kind(enum.Enum):
    """How a callable gives its result."""

    COROUTINE = "coroutine function"
    ASYNC_GENERATOR = "async generator function"
    STREAM = "function that returns an async iterator"
    SYNC = "function"


def kind_of(function: Callable[..., Any]) -> Kind:
    """The kind of a function, a partial, a bound method or an object with ``__call__``."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.iscoroutinefunction(inner):  # an object may say so too: `unittest.mock.AsyncMock`
        return Kind.COROUTINE
    if not inspect.isroutine(inner) and not inspect.isclass(inner):
        inner = type(inner).__call__
    if inspect.iscoroutinefunction(inner):
        return Kind.COROUTINE
    if inspect.isasyncgenfunction(inner):
        return Kind.ASYNC_GENERATOR
    return Kind.STREAM if _says_async_iterator(inner) else Kind.SYNC


def _says_async_iterator(function: Any) -> bool:
    try:
        result = typing.get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001 - annotations may name what exists for type checkers only
        result = getattr(function, "__annotations__", {}).get("return")
    if isinstance(result, str):
        return result.partition("[")[0].rpartition(".")[2].strip() in _STREAM_NAMES
    # By identity: an annotation may be anything, hashable or not.
    origin = typing.get_origin(result) or result
    return any(origin is stream for stream in _STREAMS)


def as_coroutine_function(
    function: Callable[..., Any], *, in_shared_threads: bool = True
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The same function, to be awaited. A sync one runs in a thread, with the caller's context.

    Args:
        function: A function of any kind.
        in_shared_threads: Whether a sync one takes one of the event loop's few shared threads.
            Who waits in a thread already must not: callers inside each other could use them up.
    """
    match kind_of(function):
        case Kind.COROUTINE:
            return function
        case Kind.SYNC:
            return functools.partial(_call_in_thread, function, in_shared_threads)
        case _:
            return functools.partial(_call, function)


async def _call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    result = function(*args, **kwargs)
    return result if is_stream(result.__class__) else await _awaited(result)


async def _call_in_thread(
    function: Callable[..., Any],
    in_shared_threads: bool,  # noqa: FBT001 - beside the caller's own arguments
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # A thread cannot be stopped: on a timeout it is left to end by itself, its result unused.
    result = await anyio.to_thread.run_sync(
        functools.partial(in_this_thread, function, *args, **kwargs),
        abandon_on_cancel=True,
        limiter=None if in_shared_threads else anyio.CapacityLimiter(1),
    )
    return await _awaited(result)


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


@functools.lru_cache(maxsize=256)
def is_stream(cls: type) -> bool:
    """Whether the instances of a class are iterated over asynchronously."""
    return hasattr(cls, "__aiter__")
