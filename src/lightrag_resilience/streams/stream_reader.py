"""A stream under way: each item waited for so long, and one verdict at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from lightrag_resilience.calls.attempts import Attempts
from lightrag_resilience.calls.call_context import Call, current_call
from lightrag_resilience.calls.publishing import publish_call_failed
from lightrag_resilience.errors import (
    AttemptTimeoutError,
    TruncatedStreamError,
    UnsupportedCallError,
)
from lightrag_resilience.runtime.tasks import keep_until_done
from lightrag_resilience.timeouts.idle_timer import IdleTimer

from .finish_markers import FinishMarker, finish_marker_for, why_not_whole
from .stream_proxy import close_both, sent_into, thrown_into

__all__ = ["StreamReader"]

T = TypeVar("T")


class StreamReader(Generic[T]):
    """A stream's call, from its first item on.

    Nothing in here knows the stream that the caller has, so that one is gone once it is dropped.

    Args:
        guard: Whose call it is.
        call: The call.
        iterator: Gives the items.
        source: What the iterator reads from, closed with it.
        first: The first item.
    """

    __slots__ = (
        "_call",
        "_finish",
        "_guard",
        "_idle_timer",
        "_iterator",
        "_source",
        "_span",
        "_waited",
    )

    def __init__(
        self, guard: Attempts, call: Call, iterator: AsyncIterator[T], source: Any, first: T
    ) -> None:
        self._guard = guard
        self._call: Call | None = call
        self._iterator = iterator
        self._source = source
        now, policy = guard.clock(), call.loop_state.policy
        timeout = policy.timeout
        self._waited = now - call.started
        self._span: _Span | None = None
        if timeout.stream_total is not None:
            self._span = _Span(timeout.stream_total, call.started, now)
        gap = timeout.gap or timeout.attempt or math.inf
        until = math.inf if self._span is None else self._span.until
        self._idle_timer = IdleTimer(gap, until, call.loop_state.loop, guard.clock)
        call.become_stream(self._idle_timer)
        self._finish: FinishMarker | None = None
        if policy.stream.finish_marker:
            self._finish = finish_marker_for(first)

    async def items(self, first: T) -> AsyncGenerator[T, Any]:  # noqa: C901, PLR0912, PLR0915 - as `Guard.run`
        """All items. A generator, as a coroutine for each would cost as much as all else.

        What its reader sends or throws into it reaches the source, where that is a generator.

        Raises:
            AttemptTimeoutError: An item, or the stream as a whole, took too long.
            TruncatedStreamError: It ended without its finish marker, or its server gave up.
            Exception: What the source raised.
        """
        item: Any = first
        del first
        guard, iterator, gaps = self._guard, self._iterator, self._idle_timer
        span, around = self._span, current_call
        note = None if self._finish is None else self._finish.record
        step: Callable[[], Awaitable[T]] | None = None
        thrown: BaseException | None = None
        while True:
            try:
                if (sent := (yield item)) is not None:
                    step = functools.partial(sent_into, iterator, sent)
            except GeneratorExit:
                raise
            except BaseException as error:
                if self._call is None:
                    raise
                thrown, step = error, functools.partial(thrown_into, iterator, error)
            item = None
            if (call := self._call) is None:
                return
            if span is not None:
                await self._resume(span)
            try:
                gaps.start()
            except UnsupportedCallError:
                self.abandon()
                raise
            call.guard, call.parent = guard, around.get()
            token = around.set(call)
            try:
                try:
                    if step is None:
                        item = await anext(iterator)
                    else:
                        item = await step()
                        step = thrown = None
                finally:
                    call.guard = None
                    if span is not None:
                        span.left = guard.clock()
                    try:  # noqa: SIM105 - suppress() costs more than all of this
                        around.reset(token)
                    except ValueError:
                        pass  # ended by the garbage collector, in the context of other code
            except StopAsyncIteration as end:
                await self._interrupted(end)
                return
            except BaseException as error:
                is_readers = thrown is not None and _is_the_same(error, thrown)
                thrown = step = None  # they lead back here: a circle
                if is_readers:  # and the source raised it on
                    self._release()
                    await self._close_after_error()
                else:
                    await self._interrupted(error)
                raise
            if gaps.stop():
                # LightRAG answers a cancellation amid a model's thoughts with one more item.
                await self._fail(late := self._too_late())
                raise late
            if note is not None:
                try:  # noqa: SIM105 - suppress() costs more than all of this
                    note(item)
                except Exception:  # noqa: BLE001, S110 - an odd item must not break its stream
                    pass

    @property
    def is_under_way(self) -> bool:
        """Whether there is no verdict yet, and may be one."""
        return self._call is not None

    # ------------------------------------------------------------------ waiting

    async def _resume(self, span: _Span) -> None:
        """The reader asks for an item, where the stream may take only so long as a whole."""
        now = self._guard.clock()
        span.reader_came_back(now)
        if now >= span.until:
            await self._fail(late := self._too_long(span))
            raise late

    async def _interrupted(self, error: BaseException) -> None:
        """An error ended the wait for an item; where it stands for another, this raises that."""
        ends = (asyncio.CancelledError, StopAsyncIteration)
        if self._idle_timer.stop() and isinstance(error, ends):
            await self._fail(late := self._too_late())
            raise late from error
        if isinstance(error, StopAsyncIteration):
            if (cut_off := self._why_not_whole()) is not None:
                await self._fail(cut_off)
                raise cut_off from None
            self.end()
        elif isinstance(error, Exception):
            await self._fail(error)
        elif isinstance(error, GeneratorExit):  # dropped while it waits: nothing can be awaited
            self.abandon()
        else:
            self._release()
            await self._close_after_error()

    def _too_late(self) -> Exception:
        if (span := self._span) is not None and self._idle_timer.ran_out:
            return self._too_long(span)
        late = f"waiting {self._idle_timer.seconds:g} s for the next item"
        return AttemptTimeoutError(self._guard.name, None, late)

    def _too_long(self, span: _Span) -> Exception:
        if span.is_readers_fault:
            self._release()
        late = f"after {span.seconds:g} s of its stream"
        return AttemptTimeoutError(self._guard.name, None, late)

    # ------------------------------------------------------------------ ending

    async def close(self) -> None:
        """Stop here and close the source: no verdict, unless the finish marker came already."""
        if (finish := self._finish) is not None:
            if finish.failure is not None and (cut_off := self._why_not_whole()) is not None:
                self._settle_failed(cut_off)
            elif finish.is_seen:
                self.end()
        self._release()
        await self._close_source()

    def abandon(self) -> None:
        """Let go of the call here and now, and of the source as soon as its loop gets to it."""
        if (call := self._call) is None:
            return
        self._release()
        # Left to the garbage collector, the generators inside openai's streams get in each other's
        # way, and the connection stays open.
        with contextlib.suppress(RuntimeError):  # the loop is closed
            call.loop_state.loop.call_soon_threadsafe(_close_later, self._close_after_error)

    def end(self) -> None:
        """The source has said all: a success."""
        self._idle_timer.close()
        if (call := self._take_call()) is not None:
            self._guard.settle_success(call, self._waited)

    def _why_not_whole(self) -> TruncatedStreamError | None:
        finish = self._finish
        return None if finish is None else why_not_whole(self._guard.name, finish)

    async def _fail(self, error: Exception) -> None:
        self._settle_failed(error)
        await self._close_after_error()

    def _settle_failed(self, error: Exception) -> None:
        if (call := self._take_call()) is not None:
            self._guard.settle_error(call, error)
            publish_call_failed(self._guard, call, error)

    def _release(self) -> None:
        if (call := self._take_call()) is not None:
            self._guard.settle_without_verdict(call)

    def _take_call(self) -> Call | None:
        """The call, no longer under way, to be settled once."""
        call, self._call = self._call, None
        if call is not None:
            self._guard.gate.running.pop(call, None)
        return call

    async def _close_after_error(self) -> None:
        """Close the source; what goes wrong here does not hide why."""
        with contextlib.suppress(Exception):
            await self._close_source()

    async def _close_source(self) -> None:
        self._idle_timer.close()
        await close_both(self._iterator, self._source)


def _is_the_same(error: BaseException, thrown: BaseException) -> bool:
    """Whether a generator let an error through that was thrown into it."""
    is_end = isinstance(
        thrown, (StopIteration, StopAsyncIteration)
    )  # which Python does not raise on
    return error is thrown or (is_end and error.__cause__ is thrown)


class _Span:
    """The time of a stream as a whole, and how much of it its reader took.

    Args:
        seconds: How long it may take.
        started: Monotonic seconds at which its attempt was sent.
        now: Monotonic seconds; its first item has just come.

    Attributes:
        until: Monotonic seconds at which it must end.
        left: When the reader was last given an item.
    """

    __slots__ = ("_away", "left", "seconds", "until")

    def __init__(self, seconds: float, started: float, now: float) -> None:
        self.seconds = seconds
        self.until = started + seconds
        self.left = now
        self._away = 0.0

    def reader_came_back(self, now: float) -> None:
        """The reader asks for the next item, having had the last since `left`."""
        self._away += now - self.left

    @property
    def is_readers_fault(self) -> bool:
        """Whether the reader took more of the time than the source."""
        return self._away * 2 > self.seconds


def _close_later(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    keep_until_done(asyncio.get_running_loop().create_task(close()))
