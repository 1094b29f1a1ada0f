"""Fallbacks: a chain of functions, of which the next is called if one fails.

A chain never makes up an answer. If all fail it raises, unless the caller uses `call_chain` and a
`StaleCache` has an answer; then the answer says how old it is.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, cast, overload

from annotated_types import Gt, Le

from lightrag_resilience.config.validation import problem_with
from lightrag_resilience.errors import (
    AllFailedError,
    DeadlineExceededError,
    DependencyError,
    PolicyError,
    UnsupportedCallError,
)
from lightrag_resilience.events import Events, FallbackUsed, StaleAnswerServed
from lightrag_resilience.failures.classifier import classify, root_cause
from lightrag_resilience.failures.failover import should_fall_back
from lightrag_resilience.failures.http_errors import status_of
from lightrag_resilience.pipeline.registry import Guards, resolve_guards
from lightrag_resilience.runtime.background_loop import refuse_green_threads
from lightrag_resilience.runtime.callables import (
    Kind,
    as_coroutine_function,
    is_stream,
    kind_of,
    must_be_function,
    pass_for,
)
from lightrag_resilience.streams.guarded_stream import generator_function
from lightrag_resilience.streams.stream_proxy import PrimedStream

from .stale_cache import StaleCache

__all__ = ["ChainAnswer", "call_chain", "with_fallbacks"]

P = ParamSpec("P")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)

_Total = Annotated[float, Gt(0), Le(86_400)] | None


@dataclass(frozen=True, slots=True)
class ChainAnswer(Generic[T_co]):
    """The answer of a chain, and its source.

    Attributes:
        value: The result of the function, unchanged.
        source: The function that returned it: its guard's name, or its own.
        stale_for: Age in seconds of a cached answer; None for a fresh one.
        reasons: Why each function before it failed, or every function for a cached answer.
    """

    value: T_co
    source: str
    stale_for: float | None = None
    reasons: tuple[str, ...] = ()

    @property
    def is_stale(self) -> bool:
        """Whether this is a cached answer, as every function failed."""
        return self.stale_for is not None


def with_fallbacks(
    *functions: Callable[P, R],
    when: Callable[[Exception], bool] = should_fall_back,
    total: float | None = None,
    stale: StaleCache | None = None,
    registry: Guards | None = None,
) -> Callable[P, R]:
    """Call the first function, and if it fails the next, with the same arguments.

    All are of one kind, and so is the result. A stream falls back before its first item only. A
    cancellation ends the chain. Each change of function is a `FallbackUsed` event.

    Args:
        functions: Usually each `resilient`, under names of their own.
        when: Whether the next may help after an error; an error that it denies is raised.
        total: Seconds for the chain, for a stream to its first item; None sets no limit.
        stale: Keeps answers for `call_chain`; not for streams.
        registry: The guards whose listeners get the events; those of the process by default.

    Raises:
        AllFailedError: On a call: every function failed, or the time was up.
        UnsupportedCallError: No functions, or of several kinds, or `when` or `stale` is of a wrong
            type; on a call: arguments that are no key for `stale`.
        PolicyError: `total` is out of bounds.
    """
    kinds = [_kind_of(function) for function in functions]
    if not kinds:
        raise UnsupportedCallError("with_fallbacks needs at least one function")
    if len(set(kinds)) > 1:
        found = ", ".join(kind.value for kind in kinds)
        raise UnsupportedCallError(f"with_fallbacks needs functions of one kind, not {found}")
    if not callable(when) or iscoroutinefunction(when):
        raise UnsupportedCallError("with_fallbacks: when must be a plain function of the error")
    if stale is not None and not isinstance(stale, StaleCache):
        raise UnsupportedCallError(
            f"with_fallbacks: stale must be a StaleCache(max_age=...), not a {type(stale).__name__}"
        )
    if stale is not None and kinds[0] is Kind.STREAM:
        raise UnsupportedCallError("A StaleCache keeps answers, not streams")
    if problem := problem_with(total, _Total):
        raise PolicyError(f"with_fallbacks: total {problem}")
    owner = resolve_guards(registry)
    chain = _Chain(functions, when=when, total=total, stale=stale, events=owner.events)
    match kinds[0]:
        case Kind.COROUTINE:
            wrapper: Any = _coroutine(chain)
        case Kind.SYNC:
            wrapper = _sync(chain, owner)
        case _:
            wrapper = _stream(chain)
    pass_for(wrapper, functions[0])
    vars(wrapper)["__resilience_chain__"] = chain
    chain.wrapper = wrapper
    return cast("Callable[P, R]", wrapper)


@overload
async def call_chain(
    function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
) -> ChainAnswer[R]: ...
@overload
async def call_chain(
    function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> ChainAnswer[R]: ...
async def call_chain(
    function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> ChainAnswer[Any]:
    """Call a chain for its answer and source; with a `StaleCache`, a cached answer if need be.

    A cached answer is returned only if every function failed, and never by a call of the chain
    itself.

    Raises:
        AllFailedError: Every function failed, and the cache has no answer that is young enough.
        UnsupportedCallError: `function` is no chain, or its arguments are no key.
    """
    chain = getattr(function, "__resilience_chain__", None)
    # A decorator around a chain copies its attributes; calling the chain would bypass it.
    if not isinstance(chain, _Chain) or chain.wrapper is not function:
        raise UnsupportedCallError("call_chain() needs what with_fallbacks() returned")
    return await chain.answer(args, kwargs, may_be_stale=True)


# ---------------------------------------------------------------------- the chain


class _Chain:
    """The functions of a chain, as coroutine functions, and the order of their calls."""

    def __init__(
        self,
        functions: tuple[Callable[..., Any], ...],
        *,
        when: Callable[[Exception], bool],
        total: float | None,
        stale: StaleCache | None,
        events: Events,
    ) -> None:
        self.names = _names_of(functions)
        self.calls = [as_coroutine_function(each, in_shared_threads=False) for each in functions]
        self.when = when
        self.total = total
        self.stale = stale
        self.events = events
        self.wrapper: Any = None

    async def answer(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, may_be_stale: bool = False
    ) -> ChainAnswer[Any]:
        stale = self.stale
        key = None if stale is None else stale.key_of(self, args, kwargs)
        failed: list[Exception] = []
        try:
            fresh = await self._answer_in_time(args, kwargs, failed)
            if fresh is not None:
                if stale is not None and not isinstance(fresh.value, PrimedStream):
                    stale.remember(key, fresh.source, fresh.value)
                return fresh
            old = stale.recall(key) if stale is not None and may_be_stale else None
            if old is None:
                raise self._all_failed(failed) from failed[-1]
            self.events.publish(StaleAnswerServed(self.names[0], old.source, old.age))
            return ChainAnswer(old.value, old.source, old.age, self._reasons_of(failed))
        finally:
            failed.clear()  # tracebacks refer to this frame: the cycle would keep arguments alive

    async def _answer_in_time(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], failed: list[Exception]
    ) -> ChainAnswer[Any] | None:
        """A fresh answer; None if all failed or the time of the chain is up."""
        time = asyncio.timeout(self.total)
        try:
            async with time:
                return await self._first_success(args, kwargs, failed, time)
        except TimeoutError:
            if not time.expired():  # a function's own timeout, which `when` denied
                raise
        late = f"after {self.total:g} s for all"
        failed.append(DeadlineExceededError(self.names[len(failed)], None, late))
        return None

    async def _first_success(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        failed: list[Exception],
        time: asyncio.Timeout,
    ) -> ChainAnswer[Any] | None:
        for name, call in zip(self.names, self.calls, strict=True):
            if failed:
                if time.expired():  # but the previous function swallowed the cancellation
                    return None
                self.events.publish(
                    FallbackUsed(self.names[len(failed) - 1], name, _class_of(failed[-1]))
                )
            try:
                result = await call(*args, **kwargs)
                if is_stream(result.__class__):
                    result = await PrimedStream(result).open()
                return ChainAnswer(result, name, None, self._reasons_of(failed))
            except Exception as error:
                if not self.when(error):
                    if failed:
                        reasons = "; ".join(self._reasons_of(failed))
                        error.add_note(f"lightrag_resilience: a fallback after {reasons}")
                    raise
                failed.append(error)
        return None

    def _reasons_of(self, failed: list[Exception]) -> tuple[str, ...]:
        return tuple(f"{name}: {_why(error)}" for name, error in zip(self.names, failed))  # noqa: B905 - functions not called have no error

    def _all_failed(self, failed: list[Exception]) -> AllFailedError:
        untried = (f"{name}: not called" for name in self.names[len(failed) :])
        reason = f"({'; '.join((*self._reasons_of(failed), *untried))})"
        waits = [wait for wait in map(_wait_of, failed) if wait is not None]
        return AllFailedError(self.names[0], min(waits, default=None), reason, tuple(failed))


# ---------------------------------------------------------------------- wrappers by kind


def _coroutine(chain: _Chain) -> Callable[..., Any]:
    async def chained(*args: Any, **kwargs: Any) -> Any:
        return (await chain.answer(args, kwargs)).value

    return chained


def _stream(chain: _Chain) -> Callable[..., Any]:
    async def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (await chain.answer(args, kwargs)).value

    return generator_function(begin)


def _sync(chain: _Chain, owner: Guards) -> Callable[..., Any]:
    def chained(*args: Any, **kwargs: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            # A new loop for each call would leave the clients' connections on a closed one.
            return owner.threads.run(chain.answer(args, kwargs)).value
        refuse_green_threads()
        raise UnsupportedCallError(
            f"{chain.names[0]} and its fallbacks are sync functions and would block the event "
            "loop: use 'await call_chain(…)', or call them from a thread"
        )

    return chained


def _kind_of(function: Any) -> Kind:
    must_be_function(function, "with_fallbacks needs functions")
    kind = kind_of(function)
    return Kind.STREAM if kind is Kind.ASYNC_GENERATOR else kind


# ---------------------------------------------------------------------- names and reasons


def _names_of(functions: tuple[Callable[..., Any], ...]) -> list[str]:
    """The name of each function, with a number if it occurs again."""
    seen: Counter[str] = Counter()
    names = []
    for name in map(_name_of, functions):
        seen[name] += 1
        names.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return names


def _name_of(function: Any) -> str:
    """Its guard's name or its own; never its repr: that of a partial may show a key."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(
        getattr(function, "__resilience_name__", None)
        or getattr(function, "__name__", None)
        or type(function).__name__
    )


def _class_of(error: Exception) -> str:
    return type(root_cause(error)).__name__


def _why(error: Exception) -> str:
    """The class of an error and its status; never its text, which may quote a prompt."""
    name = _class_of(error)
    if isinstance(error, DependencyError):
        return f"{name} {error.reason}".rstrip()
    try:
        status = status_of(root_cause(error))
    except Exception:  # noqa: BLE001 - an error's odd attributes must not hide the error
        status = None
    return name if status is None else f"{name} {status}"


def _wait_of(error: Exception) -> float | None:
    if isinstance(error, DependencyError):
        return error.retry_after
    return classify(error).retry_after
