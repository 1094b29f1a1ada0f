"""A stream read to its end inside one call, so that a broken stream is retried as a whole.

A stream must not begin again after its first item; here no item has left the call, so it may.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, ParamSpec, TypeVar, overload

from lightrag_resilience.calls.attempts import Attempts
from lightrag_resilience.calls.call_context import Call, current_call
from lightrag_resilience.errors import UnsupportedCallError
from lightrag_resilience.events import Events
from lightrag_resilience.runtime.callables import (
    as_coroutine_function,
    is_stream,
    must_be_function,
    name_of,
)
from lightrag_resilience.streams.guarded_stream import GuardedStream, items_of
from lightrag_resilience.streams.stream_proxy import PrimedStream, StreamProxy

__all__ = ["collected"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def collected(
    function: Callable[P, Coroutine[Any, Any, AsyncIterator[R]]],
) -> Callable[P, Coroutine[Any, Any, list[R]]]: ...
@overload
def collected(
    function: Callable[P, AsyncIterator[R]],
) -> Callable[P, Coroutine[Any, Any, list[R]]]: ...
def collected(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, list[Any]]]:
    """Turn a function that streams into one that returns all items, for a guard around it.

    ::

        @resilient("llm.openai")
        @collected
        async def pieces(prompt: str) -> AsyncIterator[str]: ...


        text = "".join(await pieces("…"))

    To its guard it is a call like any other: a stream that stalls, breaks or ends without its
    model's finish marker is a failed attempt. `TimeoutPolicy.attempt` holds for the whole stream,
    and so do `first_item`, `gap` and `stream_total`. Without a guard around it, it only reads. All
    items are held in memory.

    Args:
        function: A function that returns an async iterator, awaited or not.

    Raises:
        UnsupportedCallError: It is no function; on a call: its result is no async iterator.
    """
    must_be_function(function, "collected() needs a function")
    open_source = as_coroutine_function(function)

    @functools.wraps(function)
    async def collect(*args: Any, **kwargs: Any) -> list[Any]:
        source = await open_source(*args, **kwargs)
        if not is_stream(source.__class__):
            name = name_of(function)
            found = type(source).__name__
            raise UnsupportedCallError(f"collected({name}) needs a stream, not {found}")
        async with await _open(source) as stream:
            return [item async for item in items_of(stream)]

    return collect


async def _open(source: Any) -> StreamProxy[Any]:
    call = current_call.get()
    if call is None or call.guard is None:
        return await PrimedStream[Any](source).open()
    return await GuardedStream(_Attempt(call), source).open(_PartOfAttempt(call), None)


class _PartOfAttempt(Call):
    """Reading the stream, as a call inside the attempt: with its times, on its loop."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: Call) -> None:
        self._attempt = attempt
        self.begin(attempt.guard, None, attempt.began)
        self.loop_state = attempt.loop_state
        self.started = attempt.started

    @contextlib.contextmanager
    def suspend_timers(self) -> Iterator[None]:
        """Suspend the timer of the item and that of the attempt around the stream."""
        with self._attempt.suspend_timers(), super().suspend_timers():
            yield


class _Attempt(Attempts):
    """The guard as the stream sees it: it settles nothing, as the attempt around it does."""

    __slots__ = ()

    def __init__(self, call: Call) -> None:
        guard: Attempts = call.guard
        events = Events()  # without listeners: the attempt around the stream publishes
        super().__init__(
            guard.name, events, guard.breaker, call.loop_state.loop_states, guard.budget
        )
        self.policy, self.gate, self.clock = guard.policy, guard.gate, guard.clock

    def settle_success(
        self, call: Call, duration: float | None = None, answer: object = None
    ) -> None:
        """Nothing: the attempt goes on."""

    def settle_error(self, call: Call, error: BaseException) -> None:
        """Nothing: the error is raised to the attempt."""

    def settle_without_verdict(self, call: Call) -> None:
        """Nothing: the attempt settles."""
