"""What an error's traceback and the errors beneath it tell; looked at on the failure path only."""

from __future__ import annotations

import asyncio
import dis
import errno
import re
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final

from ._verdicts import Failure, Reader

__all__ = [
    "by_inner",
    "came_of_an_answer",
    "has_run_out",
    "raised_in",
    "raised_over",
    "was_reading_an_answer",
]

_DEEPEST = 16  # errors beneath an error
_SDKS: Final = frozenset(
    {"openai", "anthropic", "google", "ollama", "botocore", "aiobotocore", "voyageai", "zhipuai"}
)
_CLIENTS: Final = frozenset(
    {"httpx", "httpx2", "aiohttp", "requests", "urllib3", "opensearchpy", "elastic_transport"}
)

# ---------------------------------------------------------------------- the errors beneath


def by_inner(attribute: str, default: Failure) -> Reader:
    """The verdict of the error that an attribute holds."""

    def read(exc: Exception) -> Failure | tuple[Exception, ...]:
        inner = getattr(exc, attribute, None)
        return (inner,) if isinstance(inner, Exception) else default

    return read


def raised_over(exc: BaseException) -> BaseException | None:
    """The error that a wrapper was raised for: its cause, or what its own frame had caught.

    What else was being handled at that time may be of another call, and tells nothing.
    """
    if exc.__cause__ is not None:
        return exc.__cause__
    hidden = exc.__context__
    if hidden is None or hidden.__traceback__ is None or (trace := _innermost(exc)) is None:
        return None
    return hidden if trace.tb_frame is hidden.__traceback__.tb_frame else None


def has_run_out(exc: BaseException, tells: Callable[[BaseException], bool]) -> bool:
    """Whether something of this process was used up: connections, descriptors, ports, threads.

    Nothing was sent then, and the dependency is not to blame. `tells` knows the classes that mean
    it by themselves.
    """
    if exc.__cause__ is None and exc.__context__ is None:  # most often, and at a tenth of the cost
        return _has_run_out(exc)
    return _is_of_used_up(exc, tells, _DEEPEST)


def _is_of_used_up(
    exc: BaseException, tells: Callable[[BaseException], bool], deepest: int
) -> bool:
    below: BaseException | None = exc
    for depth in range(deepest):
        if below is None:
            return False
        if isinstance(below, BaseExceptionGroup):  # of attempts on several addresses
            inner, left = below.exceptions[:_DEEPEST], deepest - depth - 1
            return all(_is_of_used_up(one, tells, left) for one in inner)
        if _has_run_out(below) or tells(below):
            return True
        below = raised_over(below)
    return False


# EADDRNOTAVAIL: no port of our own is left.
_USED_UP: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
    | {errno.EADDRNOTAVAIL, errno.EADDRINUSE}
)
_NO_THREAD = ("can't start new thread",)
_NUMBER = re.compile(r"\[Errno ([0-9]{1,4})\]")


def _has_run_out(exc: BaseException) -> bool:
    if isinstance(exc, TimeoutError | asyncio.CancelledError):
        return _waits_for_a_connection(exc.__traceback__)
    if isinstance(exc, OSError):
        if exc.errno is not None:
            return exc.errno in _USED_UP
        # asyncio and aiohappyeyeballs join the errors of several addresses to one text.
        text = str(exc)
        numbers = _NUMBER.findall(text) if text.startswith("Multiple exceptions: ") else ()
        return bool(numbers) and all(int(number) in _USED_UP for number in numbers)
    return exc.args == _NO_THREAD and isinstance(exc, RuntimeError)


# Functions that wait until the client's own pool has a free connection, and tell so by no error.
_POOLS: Final = frozenset(
    {
        ("aiohttp.connector", "_wait_for_available_connection"),
        ("asyncpg.pool", "_acquire_impl"),
        ("httpcore._async.connection_pool", "wait_for_connection"),
        ("httpcore2._async.connection_pool", "wait_for_connection"),
        ("neo4j._async.io._pool", "_acquire"),
        ("psycopg_pool.pool_async", "_getconn_unchecked"),
        ("pymongo.asynchronous.pool", "_get_conn"),
        ("redis.asyncio.connection", "get_connection"),
        ("valkey.asyncio.connection", "get_connection"),
    }
)
# A limit of one's own, such as that of threads. Not a lock: clients read by turns under one.
_LIMITS: Final = frozenset(
    {
        ("anyio._backends._asyncio", "CapacityLimiter.acquire_on_behalf_of"),
        ("anyio._backends._asyncio", "Semaphore.acquire"),
        ("anyio._core._synchronization", "Semaphore.acquire"),
        ("asyncio.locks", "Semaphore.acquire"),
    }
)
_LOCKS: Final = frozenset({"asyncio.locks", "asyncio.queues"})
_WAITING: Final = frozenset(
    _LOCKS
    | {"asyncio.tasks", "asyncio.timeouts", "pymongo.lock"}
    | {"anyio._backends._asyncio", "httpcore._synchronization", "httpcore2._synchronization"}
    | {"anyio._core._synchronization"}
    | {"neo4j._async_compat.concurrency", "psycopg_pool._acompat", "psycopg_pool.pool_async"}
)


def _waits_for_a_connection(trace: TracebackType | None) -> bool:
    """Whether a call that was cut short was still waiting there, and not connecting yet."""
    is_waiting = False
    caller = ""
    for module, function in _frames(trace):
        if (module, function.rpartition(".")[2]) in _POOLS or (module, function) in _LIMITS:
            is_waiting = True
        elif module in _LOCKS and caller.rpartition(".")[2].endswith("pool"):
            is_waiting = True  # of any driver that waits by a lock or a queue, such as aiomysql
        elif is_waiting and module not in _WAITING:
            is_waiting = False
        caller = module
    return is_waiting


# ---------------------------------------------------------------------- whose code it came out of

_RAISES = dis.opmap["RAISE_VARARGS"]
# A call that does not fit the function is the caller's mistake.
_TOLD_OF_IT = re.compile(r" (?:returned|received)\b")
_MISCALLED = re.compile(
    r"unexpected keyword argument|required (?:positional |keyword-only )?argument|"
    r"positional arguments? but|multiple values for|Missing required arguments"
)


def came_of_an_answer(exc: BaseException) -> bool:
    """Whether an SDK, or LightRAG's code around one, stumbled over what it was answered.

    A gateway's page in place of the provider's answer surfaces so: ``'str' object has no attribute
    'choices'``. What such code raises by a statement of its own is about its arguments.
    """
    trace = _innermost(exc)
    if trace is None or not _is_of_sdk(trace):
        return False
    if trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISES:
        # As in "Jina API returned ..." and in "No embedding data received".
        return isinstance(exc, ValueError) and _TOLD_OF_IT.search(str(exc)) is not None
    return not (isinstance(exc, TypeError) and _MISCALLED.search(str(exc)))


def raised_in(exc: BaseException) -> str:
    """The module whose line raised an error; empty where that is not known."""
    trace = _innermost(exc)
    return "" if trace is None else _place(trace)[0]


def was_reading_an_answer(exc: BaseException) -> bool:
    """Whether an SDK or an HTTP client was decoding; anywhere else broken text is a bug."""
    readers = _SDKS | _CLIENTS
    return any(
        _package(module) in readers or _is_binding(module)
        for module, _ in _frames(exc.__traceback__)
    )


def _is_of_sdk(trace: TracebackType) -> bool:
    """Whether a line is of a provider's SDK, or of LightRAG's code around one."""
    module, _ = _place(trace)
    return _package(module) in _SDKS or _is_binding(module)


def _is_binding(module: str) -> bool:
    return module.startswith("lightrag.llm.") or module == "lightrag.rerank"


def _innermost(exc: BaseException) -> TracebackType | None:
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, str]]:
    while trace is not None:
        yield _place(trace)
        trace = trace.tb_next


def _place(trace: TracebackType) -> tuple[str, str]:
    frame = trace.tb_frame
    return str(frame.f_globals.get("__name__")), frame.f_code.co_qualname


def _package(module: str) -> str:
    return module.partition(".")[0]
