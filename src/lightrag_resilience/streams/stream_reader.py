"""A stream under way: a timeout for each item, and one verdict at its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from lightrag_resilience.calls.attempts import Attempts
from lightrag_resilience.calls.call_context import Call, current_call
from lightrag_resilience.calls.publishing import publish_call_failed, publish_wasted_tokens
from lightrag_resilience.errors import (
    AttemptTimeoutError,
    TruncatedStreamError,
    UnsupportedCallError,
)
from lightrag_resilience.limits.token_usage import used_tokens
from lightrag_resilience.runtime.tasks import keep_until_done
from lightrag_resilience.timeouts.idle_timer import IdleTimer

from .finish_markers import FinishMarker, TextLength, finish_marker_for, incomplete_error
from .stream_proxy import close_both, sent_into, thrown_into

__all__ = ["StreamReader"]

T = TypeVar("T")


class StreamReader(Generic[T]):
    """The call of a stream, from its first item on.

    It has no reference to the caller's `GuardedStream`, which is freed as soon as it is dropped.

    Args:
        guard: The guard of the call.
        call: The call.
        iterator: The iterator over the items.
        source: The object it reads from, closed with it.
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
        if first.__class__ is str and (sent := call.sent_tokens):
            self._finish = TextLength(sent, str(first))

    async def items(self, first: T) -> AsyncGenerator[T, Any]:  # noqa: C901, PLR0912, PLR0915 - as `Guard.run`
        """All items. One generator: a coroutine for each item would double the cost.

        What the reader sends or throws into it reaches the source, where that is a generator.

        Raises:
            AttemptTimeoutError: An item, or the stream as a whole, took too long.
            TruncatedStreamError: It ended without its finish marker, or its server gave up.
            Exception: What the source raised.
        """
        # Hot path, once for each item: names are local, and what follows is not cut into methods.
        item: Any = first
        del first
        guard, iterator, idle_timer = self._guard, self._iterator, self._idle_timer
        span, around = self._span, current_call
        record = None if self._finish is None else self._finish.record
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
                idle_timer.start()
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
                        span.given_at = guard.clock()
                    try:  # noqa: SIM105 - suppress() costs more than the whole block
                        around.reset(token)
                    except ValueError:
                        pass  # the garbage collector closed the generator, in another context
            except StopAsyncIteration as end:
                await self._settle_interrupted(end)
                return
            except BaseException as error:
                is_readers = thrown is not None and _is_the_same(error, thrown)
                thrown = step = None  # they refer to this frame: a reference cycle
                if is_readers:  # the source passed the reader's own error on: no verdict
                    self._release()
                    await self._close_after_error()
                else:
                    await self._settle_interrupted(error)
                raise
            if idle_timer.stop():
                # The source swallowed the timer's cancellation and gave an item: LightRAG does so
                # if it is cancelled amid a model's reasoning.
                await self._fail(late := self._late_error())
                raise late
            if record is not None:
                try:  # noqa: SIM105 - suppress() costs more than all of this
                    record(item)
                except Exception:  # noqa: BLE001, S110 - an item of unknown shape must not break its stream
                    pass

    @property
    def is_under_way(self) -> bool:
        """Whether the call is not settled yet."""
        return self._call is not None

    # ------------------------------------------------------------------ waiting

    async def _resume(self, span: _Span) -> None:
        """Check the time of the whole stream, when the reader requests an item."""
        now = self._guard.clock()
        span.on_reader_back(now)
        if now >= span.until:
            await self._fail(late := self._span_error(span))
            raise late

    async def _settle_interrupted(self, error: BaseException) -> None:
        """Settle a stream whose wait for an item ended with an error.

        Raises:
            AttemptTimeoutError: The timer has caused the error.
            TruncatedStreamError: The source ended before its finish marker.
        """
        ends = (asyncio.CancelledError, StopAsyncIteration)
        if self._idle_timer.stop() and isinstance(error, ends):
            await self._fail(late := self._late_error())
            raise late from error
        if isinstance(error, StopAsyncIteration):
            if (truncated := self._incomplete_error()) is not None:
                await self._fail(truncated)
                raise truncated from None
            self.end()
        elif isinstance(error, Exception):
            await self._fail(error)
        elif isinstance(error, GeneratorExit):  # dropped during a wait: no await is possible now
            self.abandon()
        else:
            self._release()
            await self._close_after_error()

    def _late_error(self) -> Exception:
        if (span := self._span) is not None and self._idle_timer.ran_out:
            return self._span_error(span)
        late = f"waiting {self._idle_timer.seconds:g} s for the next item"
        return AttemptTimeoutError(self._guard.name, None, late)

    def _span_error(self, span: _Span) -> Exception:
        if span.is_readers_fault:
            self._release()
        late = f"after {span.seconds:g} s of its stream"
        return AttemptTimeoutError(self._guard.name, None, late)

    # ------------------------------------------------------------------ ending

    async def close(self) -> None:
        """Close the source early: no verdict, unless the finish marker has come already."""
        if (finish := self._finish) is not None:
            if finish.failure is not None and (truncated := self._incomplete_error()) is not None:
                self._settle_failed(truncated)
            elif finish.is_seen:
                self.end()
        self._release()
        await self._close_source()

    def abandon(self) -> None:
        """Settle the call without a verdict now, and have the loop close the source soon."""
        if (call := self._call) is None:
            return
        self._release()
        # The garbage collector closes the generators inside openai's streams in an order in which
        # they block each other, and the connection stays open.
        with contextlib.suppress(RuntimeError):  # the loop is closed
            call.loop_state.loop.call_soon_threadsafe(_close_later, self._close_after_error)

    def end(self) -> None:
        """Settle a complete stream as a success."""
        self._idle_timer.close()
        if (call := self._take_call()) is not None:
            usage = None if self._finish is None else self._finish.usage
            self._guard.settle_success(call, self._waited, usage)

    def _incomplete_error(self) -> TruncatedStreamError | None:
        finish = self._finish
        return None if finish is None else incomplete_error(self._guard.name, finish)

    async def _fail(self, error: Exception) -> None:
        self._settle_failed(error)
        await self._close_after_error()

    def _settle_failed(self, error: Exception) -> None:
        if (call := self._take_call()) is not None:
            self._note_tokens(call)
            self._guard.settle_error(call, error)
            publish_call_failed(self._guard, call, error)

    def _release(self) -> None:
        if (call := self._take_call()) is not None:
            self._guard.settle_without_verdict(call)
            if self._guard.events.counts_tokens:
                self._note_tokens(call)
                publish_wasted_tokens(self._guard, call)

    def _note_tokens(self, call: Call) -> None:
        """Note what a stream that is not complete has used."""
        if self._finish is not None and call.reported_tokens is None:
            call.reported_tokens = used_tokens(self._finish.usage)

    def _take_call(self) -> Call | None:
        """Take the call out of those in flight, so that it is settled once."""
        call, self._call = self._call, None
        if call is not None:
            self._guard.gate.running.pop(call, None)
        return call

    async def _close_after_error(self) -> None:
        """Close the source; an error here must not hide the first one."""
        with contextlib.suppress(Exception):
            await self._close_source()

    async def _close_source(self) -> None:
        self._idle_timer.close()
        await close_both(self._iterator, self._source)


def _is_the_same(error: BaseException, thrown: BaseException) -> bool:
    """Whether a generator passed an error on that was thrown into it."""
    # Python turns these two into a RuntimeError when a generator passes them on.
    is_end = isinstance(thrown, (StopIteration, StopAsyncIteration))
    return error is thrown or (is_end and error.__cause__ is thrown)


class _Span:
    """The time of a stream as a whole, and how much of it the reader took.

    Args:
        seconds: The timeout of the whole stream.
        started: Monotonic seconds at which its attempt was sent.
        now: Monotonic seconds; its first item has just come.

    Attributes:
        until: Monotonic seconds at which it must end.
        given_at: Monotonic seconds at which the reader got its last item.
    """

    __slots__ = ("_by_reader", "given_at", "seconds", "until")

    def __init__(self, seconds: float, started: float, now: float) -> None:
        self.seconds = seconds
        self.until = started + seconds
        self.given_at = now
        self._by_reader = 0.0

    def on_reader_back(self, now: float) -> None:
        """Add the time since the last item to that of the reader."""
        self._by_reader += now - self.given_at

    @property
    def is_readers_fault(self) -> bool:
        """Whether the reader took more of the time than the source."""
        return self._by_reader * 2 > self.seconds


def _close_later(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    keep_until_done(asyncio.get_running_loop().create_task(close()))
