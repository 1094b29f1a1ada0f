"""The kinds of callables, and how to call any kind as a coroutine function."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import inspect
import io
import sys
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
)
from typing import Any

import anyio
import anyio.to_thread

from lightrag_resilience.errors import UnsupportedCallError

from .process_state import process
from .tasks import DetachedWork

__all__ = [
    "Kind",
    "as_coroutine_function",
    "is_stream",
    "kind_of",
    "must_be_function",
    "name_of",
    "names_of_threads",
    "pass_for",
]

_MOST_WRAPPERS = 32  # around one function
_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)
_AWAITABLES = (Awaitable, Coroutine, asyncio.Future, asyncio.Task)
_RUNNERS = frozenset(
    {"run", "run_until_complete", "run_coroutine_threadsafe", "run_sync"}
    | {"result", "start_blocking_portal"}
)
"""Names called by a wrapper that runs a coroutine function itself, and returns no awaitable."""
_FUTURE_MAKERS = frozenset({"ensure_future", "create_future", "run_in_executor", "wrap_future"})
"""Names called by a function that needs the event loop and returns a future."""
_ASYNCIO_MAKERS = frozenset({"create_task", "gather"})
"""The same, if they are asyncio's: sync clients of other services have methods of these names."""


class Kind(enum.Enum):
    """How a callable returns its result."""

    COROUTINE = "coroutine function"
    ASYNC_GENERATOR = "async generator function"
    STREAM = "function that returns an async iterator"
    SYNC = "function"


def name_of(function: Any) -> str:
    """A function's own name; never its repr: that of a partial shows the arguments."""
    if isinstance(function, functools.partial):
        return f"functools.partial({name_of(function.func)}, ...)"
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) and name else type(function).__name__


_ASSIGNED = {
    **dict.fromkeys(("__module__", "__name__", "__qualname__"), str),
    "__annotations__": dict,
    "__type_params__": tuple,  # from Python 3.12 on
}


def pass_for(wrapper: Any, function: Any) -> None:
    """Copy a function's names to its wrapper, unless of a wrong type, as a mock's."""
    assigned = [
        name
        for name in functools.WRAPPER_ASSIGNMENTS
        if isinstance(getattr(function, name, None), _ASSIGNED.get(name, object))
    ]
    functools.update_wrapper(wrapper, function, assigned)


def must_be_function(function: Any, what: str, hint: str = "") -> None:
    """Check that an object is a function, which can be called.

    Raises:
        UnsupportedCallError: It is the result of a call, or no callable.
    """
    if callable(function) and not isinstance(function, staticmethod | classmethod):
        return
    if inspect.isawaitable(function):
        if inspect.iscoroutine(function):
            function.close()  # else Python also warns that it was never awaited
        raise UnsupportedCallError(
            f"{what}, not the {type(function).__name__} that calling "
            f"{name_of(function)} returned: leave out the parentheses behind it"
        )
    raise UnsupportedCallError(f"{what}, not a {type(function).__name__}{hint}")


def kind_of(function: Callable[..., Any]) -> Kind:
    """The kind of a function, a partial, a bound method or an object with ``__call__``.

    Wrappers made by `functools.wraps` are of the kind of what they wrap, unless they run it.

    Raises:
        UnsupportedCallError: It cannot be called, is a sync generator function, or makes a context
            manager.
    """
    kind, _ = _find_kind(function)
    return kind


def _find_kind(function: Callable[..., Any]) -> tuple[Kind, bool]:
    """The kind of a callable, and whether it is so itself, not by the result that it passes on."""
    if not callable(function):
        must_be_function(function, "A guard calls a function")
    inner: Any = function
    for depth in range(_MOST_WRAPPERS):
        while isinstance(inner, functools.partial):
            inner = inner.func
        if _is_coroutine_function(inner):  # an object may say so too: `unittest.mock.AsyncMock`
            return Kind.COROUTINE, not depth
        if inspect.isclass(inner):
            return _kind_of_instances(inner), False
        called = inner if inspect.isroutine(inner) else type(inner).__call__
        if not depth or inspect.isasyncgenfunction(getattr(called, "__wrapped__", None)):
            _refuse_what_is_not_run(function, called, at_once=not depth)
        if (kind := _kind_of_code(called)) is not None:
            return kind, not depth
        wrapped = getattr(inner, "__wrapped__", None) or getattr(called, "__wrapped__", None)
        if not callable(wrapped):
            return _kind_of_result(called), False
        if _names_in(called) & _RUNNERS:
            break
        inner = wrapped
    return Kind.SYNC, False


def _is_coroutine_function(function: Any) -> bool:
    if sys.version_info >= (3, 14):
        return inspect.iscoroutinefunction(function)
    return asyncio.iscoroutinefunction(function)  # also by asyncio's own marker, as Cython sets it


def _kind_of_code(function: Any) -> Kind | None:
    """The kind by the code of a function; None if it does not show there."""
    if _is_coroutine_function(function):
        return Kind.COROUTINE
    if inspect.isasyncgenfunction(function):
        return Kind.ASYNC_GENERATOR
    code = getattr(function, "__code__", None)
    is_coroutine = code is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE
    return Kind.COROUTINE if is_coroutine else None  # by `types.coroutine`


def _kind_of_instances(cls: type) -> Kind:
    """The kind of a class, by what its instances are."""
    if hasattr(cls, "__await__"):
        return Kind.COROUTINE
    return Kind.STREAM if is_stream(cls) else Kind.SYNC


def _kind_of_result(function: Any) -> Kind:
    """The kind by the annotated result of a function, or by the names that it calls."""
    result = _return_of(function)
    if isinstance(result, str):
        name = result.partition("[")[0].strip()
        if any(name in (each.__name__, f"asyncio.{each.__name__}") for each in _AWAITABLES):
            return Kind.COROUTINE
        stream_names = {each.__name__ for each in _STREAMS}
        return Kind.STREAM if name.rpartition(".")[2] in stream_names else Kind.SYNC
    # By identity: an annotation may be anything, hashable or not.
    origin = typing.get_origin(result) or result
    if any(origin is stream for stream in _STREAMS):
        return Kind.STREAM
    can_be_awaited = isinstance(origin, type) and hasattr(origin, "__await__")  # as aiohttp's are
    if can_be_awaited or any(origin is awaitable for awaitable in _AWAITABLES):
        return Kind.COROUTINE
    return Kind.COROUTINE if result is None and _makes_a_future(function) else Kind.SYNC


def _return_of(function: Any) -> Any:
    """The annotated result of a function; a string if it cannot be evaluated."""
    try:
        return typing.get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001 - annotations may name what exists for type checkers only
        return getattr(function, "__annotations__", {}).get("return")


def _makes_a_future(function: Any) -> bool:
    names = _names_in(function)
    if names & _RUNNERS:
        return False
    namespace = getattr(function, "__globals__", {})
    used = [namespace[name] for name in names if name in namespace]
    if any(each is asyncio.gather or each is asyncio.create_task for each in used):
        return True
    is_of_asyncio = "asyncio" in names or any(each is asyncio for each in used)
    return bool(names & (_FUTURE_MAKERS | _ASYNCIO_MAKERS if is_of_asyncio else _FUTURE_MAKERS))


def _names_in(function: Any) -> frozenset[str]:
    """The names in the code of a function, among them those that it calls."""
    return frozenset(getattr(getattr(function, "__code__", None), "co_names", ()))


def _refuse_what_is_not_run(function: Any, called: Any, *, at_once: bool) -> None:
    """Refuse a callable whose call does no work that a guard could cover.

    Raises:
        UnsupportedCallError: It works only when its result is iterated over, or entered.
    """
    name = name_of(function)
    if getattr(called, "__globals__", None) is vars(contextlib) and hasattr(called, "__wrapped__"):
        raise UnsupportedCallError(
            f"{name} makes a context manager, which is entered outside of its call: put the guard "
            "below @asynccontextmanager, or around what connects"
        )
    is_generator = at_once and inspect.isgeneratorfunction(called)
    if is_generator and _kind_of_code(called) is None:
        raise UnsupportedCallError(
            f"{name} is a sync generator function, which runs while its items are read, outside "
            "of its call: make it an async generator, or let it return a list"
        )


def as_coroutine_function(
    function: Callable[..., Any], *, in_shared_threads: bool = True
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """A function as a coroutine function. A sync one runs in a thread, in the caller's context.

    Args:
        function: A function of any kind.
        in_shared_threads: Whether a sync one takes one of the event loop's few shared threads.
            A caller in a thread must not: nested callers could use them up and deadlock.

    Raises:
        UnsupportedCallError: As `kind_of`; on a call: it returned a sync iterator, or it needs the
            event loop but is not annotated to return an awaitable.
    """
    if inspect.iscoroutinefunction(function):
        return function  # the shortest path: a guard may ask at each call
    kind, is_itself = _find_kind(function)
    if kind is Kind.SYNC:
        return functools.partial(_call_in_thread, function, in_shared_threads)
    if kind is Kind.COROUTINE and is_itself:
        return function
    return functools.partial(_call, function)


async def _call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return await _awaited(function(*args, **kwargs))


async def _call_in_thread(
    function: Callable[..., Any],
    in_shared_threads: bool,  # noqa: FBT001 - beside the caller's own arguments
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # A thread cannot be stopped: after a timeout it runs on, and its result is dropped.
    result = await anyio.to_thread.run_sync(
        functools.partial(_run_in_this_thread, function, *args, **kwargs),
        abandon_on_cancel=True,
        limiter=None if in_shared_threads else anyio.CapacityLimiter(1),
    )
    return await _awaited(result)


def names_of_threads() -> list[str]:
    """What still runs in a thread, also where its result is no longer awaited."""
    return [f"thread of {name}" for name in list(process[DetachedWork].threads.values())]


def _run_in_this_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """The result of a sync function; one that has not done all its work is refused."""
    key, threads = object(), process[DetachedWork].threads
    threads[key] = getattr(function, "__qualname__", "function")
    try:
        result = function(*args, **kwargs)
    except RuntimeError as error:
        if not str(error).startswith(("no running event loop", "There is no current event loop")):
            raise
        raise UnsupportedCallError(
            f"{name_of(function)} needs the event loop, and was called in a thread: annotate it "
            "to return an Awaitable, or make it a coroutine function"
        ) from error
    finally:
        threads.pop(key, None)  # none in a child that the function has forked
    if not is_stream(result.__class__) and _is_lazy(result):
        with contextlib.suppress(Exception):  # the error below matters more
            getattr(result, "close", bool)()
        raise UnsupportedCallError(
            f"{name_of(function)} returned a sync iterator ({type(result).__name__}), which does "
            "its work while it is read, outside of its call: read it in the function, or use an "
            "async client"
        )
    return result


def _is_lazy(result: Any) -> bool:
    """Whether a result does its work while it is read, unlike a file or a cursor."""
    cls = type(result)
    is_made = isinstance(result, io.IOBase) or hasattr(cls, "fetchone")  # a cursor by PEP 249
    return hasattr(cls, "__next__") and not is_made and not _is_mock(cls)


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


_SEND_METHODS = ("send", "send_str", "write")


@functools.lru_cache(maxsize=256)
def is_stream(cls: type) -> bool:
    """Whether the instances of a class are streams: async iterables that are only read.

    A connection or a file that is also written to is none, nor is a mock, which has every method.
    """
    if not hasattr(cls, "__aiter__") or any(hasattr(cls, name) for name in _SEND_METHODS):
        return False
    return not _is_mock(cls)


def _is_mock(cls: type) -> bool:
    return any(base.__module__ == "unittest.mock" for base in cls.__mro__)
