"""Evidence in an error's traceback and inner errors; read on the failure path only."""

from __future__ import annotations

import asyncio
import dis
import errno
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import TracebackType
from typing import Any, Final

from .kinds import Failure, Reader

__all__ = [
    "by_inner",
    "came_of_an_answer",
    "exhaustion_of",
    "raised_over",
    "was_reading_an_answer",
]

_SDKS: Final = frozenset(
    {"openai", "anthropic", "google", "ollama", "botocore", "aiobotocore", "voyageai", "zhipuai"}
)
_CLIENTS: Final = frozenset(
    {"httpx", "httpx2", "aiohttp", "requests", "urllib3", "opensearchpy", "elastic_transport"}
)

# ---------------------------------------------------------------------- inner errors


def by_inner(attribute: str, default: Failure) -> Reader:
    """The verdict of the error that an attribute holds."""

    def read(exc: Exception) -> Failure | tuple[Exception, ...]:
        inner = getattr(exc, attribute, None)
        return (inner,) if isinstance(inner, Exception) else default

    return read


def raised_over(exc: BaseException) -> BaseException | None:
    """The error that a wrapper was raised for: its cause, or one that its own frame had caught.

    Another error that was being handled at that time may be of another call.
    """
    if exc.__cause__ is not None:
        return exc.__cause__
    hidden = exc.__context__
    if hidden is None or hidden.__traceback__ is None or (trace := _innermost(exc)) is None:
        return None
    return hidden if trace.tb_frame is hidden.__traceback__.tb_frame else None


# EADDRNOTAVAIL: this machine has no free port.
_EXHAUSTED_ERRNOS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
    | {errno.EADDRNOTAVAIL, errno.EADDRINUSE}
)
_NO_THREAD = ("can't start new thread",)
_NUMBER = re.compile(r"\[Errno ([0-9]{1,4})\]")


def exhaustion_of(cls: type[BaseException]) -> Callable[[Any], bool] | None:
    """A test for errors of a class: whether a resource of this process is exhausted.

    Such are connections, descriptors, ports and threads. None if errors of the class never are.
    """
    if issubclass(cls, (TimeoutError, asyncio.CancelledError)):
        return _was_waiting_for_a_connection
    if issubclass(cls, OSError):
        return _has_exhausted_errno
    return _has_no_thread if issubclass(cls, RuntimeError) else None


def _has_exhausted_errno(exc: OSError) -> bool:
    if exc.errno is not None:
        return exc.errno in _EXHAUSTED_ERRNOS
    # asyncio and aiohappyeyeballs join the errors of several addresses to one text.
    text = str(exc)
    numbers = _NUMBER.findall(text) if text.startswith("Multiple exceptions: ") else ()
    return bool(numbers) and all(int(number) in _EXHAUSTED_ERRNOS for number in numbers)


def _has_no_thread(exc: RuntimeError) -> bool:
    return exc.args == _NO_THREAD


# Functions that wait for a free connection of the client's own pool, and raise no error for it.
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
# The process's own limits, such as that of threads. No locks: clients read by turns under one.
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


def _was_waiting_for_a_connection(exc: BaseException) -> bool:
    """Whether a call that was cut short was still waiting in a pool, and not connecting yet."""
    is_waiting = False
    caller = ""
    for module, function in _frames(exc.__traceback__):
        if (module, function.rpartition(".")[2]) in _POOLS or (module, function) in _LIMITS:
            is_waiting = True
        elif module in _LOCKS and caller.rpartition(".")[2].endswith("pool"):
            is_waiting = True  # in the pool of any driver with a lock or a queue, as aiomysql
        elif is_waiting and module not in _WAITING:
            is_waiting = False
        caller = module
    return is_waiting


# ---------------------------------------------------------------------- the code that raised

_RAISES = dis.opmap["RAISE_VARARGS"]
_SOCKET_MODULE = "asyncio.selector_events"
# Functions of Python that raise for what the code that calls them took out of an answer.
_DECODERS: Final = frozenset({("json", "loads"), ("base64", "b64decode")})
_ABOUT_THE_ANSWER = re.compile(r" (?:returned|received)\b")
# A call that does not fit a signature is the caller's mistake.
_MISCALLED = re.compile(
    r"unexpected keyword argument|required (?:positional |keyword-only )?argument|"
    r"positional arguments? but|multiple values for|Missing required arguments"
)


def came_of_an_answer(exc: BaseException) -> bool:
    """Whether an SDK, or LightRAG's code around one, failed on an unexpected answer.

    A gateway's page in place of an answer shows as ``'str' object has no attribute 'choices'``. An
    error that such code raises by a statement of its own is about its arguments. Python 3.12 raises
    a TypeError in asyncio for a write to a lost connection.
    """
    trace = exc.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None and _location(trace.tb_next) not in _DECODERS:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__"))
    if not _reads_answers(module):
        return False
    if module == _SOCKET_MODULE:
        return True
    if trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISES:
        # As in "Jina API returned ..." and in "No embedding data received".
        return isinstance(exc, ValueError) and _ABOUT_THE_ANSWER.search(str(exc)) is not None
    return not (isinstance(exc, TypeError) and _MISCALLED.search(str(exc)))


def was_reading_an_answer(exc: BaseException) -> bool:
    """Whether an SDK or an HTTP client was decoding; elsewhere broken text is a bug."""
    readers = _SDKS | _CLIENTS
    return any(
        _package(module) in readers or _is_binding(module)
        for module, _ in _frames(exc.__traceback__)
    )


@lru_cache(maxsize=512)
def _reads_answers(module: str) -> bool:
    """Whether a module is a provider's SDK, LightRAG's code around one, or asyncio's sockets."""
    return _package(module) in _SDKS or _is_binding(module) or module == _SOCKET_MODULE


def _is_binding(module: str) -> bool:
    return module.startswith("lightrag.llm.") or module == "lightrag.rerank"


def _innermost(exc: BaseException) -> TracebackType | None:
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, str]]:
    while trace is not None:
        yield _location(trace)
        trace = trace.tb_next


def _location(trace: TracebackType) -> tuple[str, str]:
    frame = trace.tb_frame
    return str(frame.f_globals.get("__name__")), frame.f_code.co_qualname


def _package(module: str) -> str:
    return module.partition(".")[0]
