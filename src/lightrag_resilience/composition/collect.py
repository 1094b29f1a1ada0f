"""A stream read to its end inside one call: cut off or stalled, it is asked for again as a whole.

Nothing of it was shown to anybody yet, so what a stream must not do, to begin again after its first
item, is harmless here.
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
    """Make a function that streams one that returns the list of all items, for a guard around it.

    ::

        @resilient("llm.openai")
        @gathered
        async def pieces(prompt: str) -> AsyncIterator[str]: ...


        text = "".join(await pieces("…"))

    To its guard it is a call like any other, which has failed where the stream did: one that
    stalls, breaks or ends without its model's finish marker is retried as a whole.
    `TimeoutPolicy.attempt` holds for the whole stream, and `first_item`, `gap` and `stream_total`
    besides. Without a guard around it, it just reads. All items are held in memory.

    Args:
        function: A function that returns an async iterator, awaited or not.

    Raises:
        UnsupportedCallError: It is no function; on a call: what it returned is no async iterator.
    """
    must_be_function(function, "collected() needs a function")
    begin = as_coroutine_function(function)

    @functools.wraps(function)
    async def gather(*args: Any, **kwargs: Any) -> list[Any]:
        source = await begin(*args, **kwargs)
        if not is_stream(source.__class__):
            name = name_of(function)
            found = type(source).__name__
            raise UnsupportedCallError(f"collected({name}) needs a stream, not {found}")
        async with await _watched(source) as stream:
            return [item async for item in items_of(stream)]

    return gather


async def _watched(source: Any) -> StreamProxy[Any]:
    call = current_call.get()
    if call is None or call.guard is None:
        return await PrimedStream[Any](source).open()
    return await GuardedStream(_Attempt(call), source).open(_PartOfAttempt(call), None)


class _PartOfAttempt(Call):
    """The reading, as a call inside the one under way: its times, on its loop."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: Call) -> None:
        self._attempt = attempt
        self.begin(attempt.guard, None, attempt.began)
        self.loop_state = attempt.loop_state
        self.started = attempt.started

    @contextlib.contextmanager
    def suspend_timers(self) -> Iterator[None]:
        """Let no time run: neither that of an item, nor that of the attempt around all."""
        with self._attempt.suspend_timers(), super().suspend_timers():
            yield


class _Attempt(Attempts):
    """What a stream sees of a guard whose verdict falls on the attempt around the stream."""

    __slots__ = ()

    def __init__(self, call: Call) -> None:
        guard: Attempts = call.guard
        events = Events()  # none of the stream's own: the attempt around it publishes
        super().__init__(
            guard.name, events, guard.breaker, call.loop_state.loop_states, guard.budget
        )
        self.policy, self.gate, self.clock = guard.policy, guard.gate, guard.clock

    def settle_success(
        self, call: Call, duration: float | None = None, answer: object = None
    ) -> None:
        """The attempt goes on."""

    def settle_error(self, call: Call, error: BaseException) -> None:
        """It is raised to the attempt."""

    def settle_without_verdict(self, call: Call) -> None:
        """The attempt hears of it."""
