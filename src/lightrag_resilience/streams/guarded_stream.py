"""A stream as one call: admitted at its start, settled at its end, with its permit until then."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import AsyncGeneratorType
from typing import Any, Self, TypeVar, cast

from lightrag_resilience.calls.attempts import Attempts
from lightrag_resilience.calls.call_context import Call
from lightrag_resilience.config.policies import Judge, TimeoutPolicy
from lightrag_resilience.errors import TruncatedStreamError
from lightrag_resilience.timeouts.attempt_timer import Timer
from lightrag_resilience.timeouts.idle_timer import wrong_loop_error

from .finish_markers import is_of_model
from .judged_items import JudgedItems
from .stream_proxy import StreamProxy, sent_into, thrown_into
from .stream_reader import StreamReader

__all__ = ["GuardedStream", "close_complete", "generator_function", "items_of"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class GuardedStream(StreamProxy[T_co]):
    """Passes a source's items on, each within the timeouts of `TimeoutPolicy`.

    An error, a timeout and an end without the model's finish marker are failures of the dependency.
    A stream that is closed early, cancelled or dropped gives no verdict; its source is closed. Its
    call is in flight and keeps its permit until one of these happens.
    """

    __slots__ = ("_guard", "_items", "_reader")

    def __init__(self, guard: Attempts, source: Any) -> None:
        # None until the first item has come: till then the caller settles the call.
        self._reader: StreamReader[T_co] | None = None
        super().__init__(source)
        self._guard = guard
        self._items: AsyncGenerator[T_co, Any] = _nothing()

    @property
    def dependency(self) -> str:
        """Name of its guard."""
        return self._guard.name

    def judge_items(self, item: Judge | None, end: Judge | None) -> None:
        """Judge each item, and the end, from now on."""
        self._iterator = JudgedItems(self._iterator, self._guard.name, item, end)

    async def open(self, call: Call, timer: Timer | None) -> Self:
        """Wait for the first item: until it has come the attempt may be retried.

        The caller settles an error of this wait. `timer` limits it, unless the policy has a timeout
        for first items.
        """
        guard, policy = self._guard, call.loop_state.policy
        limit = _limit_of_first_item(policy.timeout)
        try:
            if limit is None:
                first = await anext(self._iterator)
            else:
                first = await self._first_in_time(call, timer, limit)
        except StopAsyncIteration:
            if policy.stream.finish_marker and is_of_model(self._source):
                raise TruncatedStreamError(guard.name, None, "before its first item") from None
            if timer is not None:
                timer.stop(call)
            guard.settle_success(call)
            return self
        except BaseException:
            with contextlib.suppress(Exception):  # an error here must not hide the first one
                await self._close_source()
            raise
        if timer is not None:
            timer.stop(call)
        if (controller := call.loop_state.controller) is not None:
            controller.first_item_received(call)
        self._reader = StreamReader(guard, call, self._iterator, self._source, first)
        self._items = self._reader.items(first)
        return self

    async def __anext__(self) -> T_co:
        try:
            return await anext(self._items)
        except StopAsyncIteration:
            if self._reader is not None and self._reader.is_under_way:  # its loop has ended
                self._abandon()
                raise wrong_loop_error() from None
            raise
        except GeneratorExit:  # Python 3.11 does not pass it on to the generator
            self._abandon()
            self._items = _nothing()
            raise

    async def asend(self, value: Any) -> T_co:
        """Send a value into the source, where that is a generator, for its next item."""
        return await self._items.asend(value)

    async def athrow(self, error: BaseException) -> T_co:
        """Raise an error in the source, where that is a generator, for its next item.

        Raises:
            Exception: What the source raised; no verdict where it is `error` itself.
        """
        try:
            return await self._items.athrow(error)
        finally:
            reader, items = self._reader, cast("AsyncGeneratorType[T_co, Any]", self._items)
            if reader is not None and items.ag_frame is None and reader.is_under_way:
                await reader.close()  # it was not read yet: the error has not reached the source

    async def aclose(self) -> None:
        """Close the source early: no verdict, unless the finish marker has come already."""
        if (reader := self._reader) is None:
            await super().aclose()
            return
        try:
            await reader.close()
        finally:
            with contextlib.suppress(RuntimeError):  # another task waits in it
                await self._items.aclose()

    async def _first_in_time(self, call: Call, timer: Timer | None, limit: float) -> T_co:
        guard = self._guard
        if timer is not None:
            timer.stop(call)
        now = guard.clock()
        left = min(call.started + limit - now, guard.remaining(call))
        own = Timer(max(left, 0.0), call.loop_state.loop, guard.clock)
        own.start(call, now)
        try:
            return await anext(self._iterator)
        except asyncio.CancelledError as error:
            if own.stop(call):
                late = f"waiting {limit:g} s for the first item"
                raise guard.timeout_error(call, error, late) from error
            raise
        finally:
            own.stop(call)

    def _abandon(self) -> None:
        if (reader := self._reader) is not None:
            reader.abandon()

    def __del__(self) -> None:
        # A caller dropped it without closing it: its permit must be released.
        self._abandon()


def items_of(stream: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items of `stream`, faster than by its ``__anext__``; keep the stream until the end."""
    return stream._items if isinstance(stream, GuardedStream) else stream  # noqa: SLF001


def generator_function(
    begin: Callable[[tuple[Any, ...], dict[str, Any]], Awaitable[Any]],
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """An async generator function over the streams that `begin` opens for its arguments.

    What is sent or thrown into its generators reaches the source, where that is a generator, too.
    """

    async def items(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        stream = await begin(args, kwargs)
        source: Any = items_of(stream)
        try:
            async for item in source:
                while True:
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # noqa: BLE001 - the source may raise it
                        item = await thrown_into(source, error)  # noqa: PLW2901
                    else:
                        if sent is None:
                            break
                        item = await sent_into(source, sent)  # noqa: PLW2901 - it is the next
        except StopAsyncIteration:
            return  # the source ended on what was sent or thrown
        finally:
            if hasattr(stream, "aclose"):
                await stream.aclose()

    return items


async def close_complete(stream: GuardedStream[Any]) -> None:
    """Close a stream whose source is complete, read to its end or not: a success."""
    if (reader := stream._reader) is not None:  # noqa: SLF001 - for streams of one SDK alone
        reader.end()
    await stream.aclose()


async def _nothing() -> AsyncGenerator[Any, None]:
    return
    yield


def _limit_of_first_item(timeout: TimeoutPolicy) -> float | None:
    """Seconds from sending to the first item; None where the attempt's timer limits it."""
    first_item, whole = timeout.first_item, timeout.stream_total
    usual = first_item or timeout.attempt or math.inf
    return whole if whole is not None and whole < usual else first_item
