"""A stream is one call: admitted at its start, judged at its end, holding its place until then."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

from ._call import Call, current_call
from ._finish import Finish, finish_after, is_of_model
from ._gate import Gate
from ._lateness import timeout_error
from ._opened import PassedOnStream, close_both
from ._tell import tell_failure
from .errors import AttemptTimeoutError, TruncatedStreamError
from .events import Events
from .policy import Policy, TimeoutPolicy
from .timeouts import Timer

__all__ = ["GuardedStream"]

T_co = TypeVar("T_co", covariant=True)

_NOTHING: Any = object()


class _Guard(Protocol):
    """The guard's side: how long a call may take, and how it ends."""

    name: str
    events: Events
    gate: Gate
    policy: Policy

    def clock(self) -> float: ...
    def remaining(self, call: Call) -> float: ...
    def settle_success(self, call: Call, duration: float | None = None) -> None: ...
    def settle_error(self, call: Call, error: BaseException) -> None: ...
    def settle_without_verdict(self, call: Call) -> None: ...


class GuardedStream(PassedOnStream[T_co]):
    """Passes a source's items on, each waited for no longer than `TimeoutPolicy` says.

    An error, a timeout and an end without the model's finish marker are failures of the dependency.
    Closing early, being cancelled or being dropped is no verdict; the source is closed with it. The
    call is under way, and has its place, until one of these happens.
    """

    __slots__ = ("_call", "_finish", "_first", "_gap_timer", "_guard", "_span", "_waited")

    def __init__(self, guard: _Guard, call: Call, source: Any) -> None:
        self._call: Call | None = None  # the caller's to settle where the source is no iterable
        super().__init__(source)
        self._call = call
        self._guard = guard
        self._first: Any = _NOTHING
        self._finish: Finish | None = None
        self._gap_timer: Timer | None = None
        self._span: _Span | None = None
        self._waited: float | None = None

    @property
    def dependency(self) -> str:
        """Name of the guard it came through."""
        return self._guard.name

    async def open(self, timer: Timer | None) -> Self:
        """Wait for the first item: a source that cannot begin fails where it may be retried.

        The caller judges this wait, and ends it by `timer` unless streams have a time of their own.
        """
        call, timeout = self._call, self._guard.policy.timeout
        assert call is not None  # noqa: S101 - a stream is opened once, when it is new
        limit = _limit_of_first_item(timeout)
        try:
            if limit is None:
                self._first = await anext(self._iterator)
            else:
                self._first = await self._first_in_time(call, timer, limit)
        except StopAsyncIteration:
            if not self._guard.policy.stream.finish_marker or not is_of_model(self._source):
                self._end()
                return self
            self._call = None
            raise TruncatedStreamError(self._guard.name, None, "before its first item") from None
        except BaseException:
            self._call = None
            await self._close_after_error()
            raise
        self._waited = self._guard.clock() - call.started
        self._gap_timer = call.parts.gap_timer
        call.is_streaming = True
        if self._guard.policy.stream.finish_marker:
            self._finish = finish_after(self._first)
        if timeout.stream_total is not None:
            self._span = _Span(timeout.stream_total, call, self._guard.clock)
        return self

    async def __anext__(self) -> T_co:
        if (first := self._first) is not _NOTHING:
            self._first = _NOTHING
            return first  # type: ignore[no-any-return]
        if (call := self._call) is None:
            raise StopAsyncIteration
        timer = self._gap_timer
        if (span := self._span) is not None:
            timer = await self._timer_within(span)
        around = current_call
        call.guard, call.parent = self._guard, around.get()
        token = around.set(call)
        if timer is not None:
            timer.start(call, timer.clock())
        try:
            try:
                item = await anext(self._iterator)
            finally:
                call.guard = None
                if span is not None:
                    span.left = self._guard.clock()
                try:  # noqa: SIM105 - suppress() costs more than all of this
                    around.reset(token)
                except ValueError:
                    pass  # ended by the garbage collector, in the context of other code
        except BaseException as error:
            await self._interrupted(error, call, timer)
            raise
        if timer is not None and timer.stop(call):
            # LightRAG answers a cancellation amid a model's thoughts with one more item.
            await self._fail(late := self._too_late(timer))
            raise late
        if (finish := self._finish) is not None:
            finish.note(item)
        return item

    async def aclose(self) -> None:
        """Stop here and close the source: no verdict, unless the finish marker came already."""
        if (finish := self._finish) is not None and finish.is_seen:
            self._end()
        self._release()
        await super().aclose()

    # ------------------------------------------------------------------ waiting

    async def _first_in_time(self, call: Call, timer: Timer | None, limit: float) -> T_co:
        guard = self._guard
        if timer is not None:
            timer.stop(call)
        now = guard.clock()
        left = min(call.started + limit - now, guard.remaining(call))
        own = Timer(max(left, 0.0), call.parts.loop, guard.clock)
        own.start(call, now)
        try:
            return await anext(self._iterator)
        except asyncio.CancelledError as error:
            if own.stop(call):
                late = f"waiting {limit:g} s for the first item"
                raise timeout_error(guard, call, late) from error
            raise
        finally:
            own.stop(call)

    async def _timer_within(self, span: _Span) -> Timer:
        """What ends the wait for an item, where the stream may take only so long as a whole."""
        now = self._guard.clock()
        span.reader_came_back(now)
        if now >= span.until:
            await self._fail(late := self._too_long(span))
            raise late
        return span.timer_at(now)

    async def _interrupted(self, error: BaseException, call: Call, timer: Timer | None) -> None:
        """An error ended the wait for an item; where it stands for another, this raises that."""
        ends = (asyncio.CancelledError, StopAsyncIteration)
        if timer is not None and timer.stop(call) and isinstance(error, ends):
            await self._fail(late := self._too_late(timer))
            raise late from error
        if isinstance(error, StopAsyncIteration):
            if (finish := self._finish) is not None and finish.is_missing:
                cut_off = TruncatedStreamError(self._guard.name, None, "before its finish marker")
                await self._fail(cut_off)
                raise cut_off from None
            self._end()
        elif isinstance(error, Exception):
            await self._fail(error)
        elif isinstance(error, GeneratorExit):  # dropped while it waits: nothing can be awaited
            self._abandon()
        else:
            self._release()
            await self._close_after_error()

    def _too_late(self, timer: Timer) -> Exception:
        if (span := self._span) is not None and timer is span.timer:
            return self._too_long(span)
        late = f"waiting {timer.seconds:g} s for the next item"
        return AttemptTimeoutError(self._guard.name, None, late)

    def _too_long(self, span: _Span) -> Exception:
        if span.is_readers_fault:
            self._release()
        late = f"after {span.seconds:g} s of its stream"
        return AttemptTimeoutError(self._guard.name, None, late)

    # ------------------------------------------------------------------ ending

    def _end(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            self._guard.gate.running.pop(call, None)
            self._guard.settle_success(call, self._waited)

    async def _fail(self, error: Exception) -> None:
        call, self._call = self._call, None
        if call is not None:
            self._guard.gate.running.pop(call, None)
            self._guard.settle_error(call, error)
            tell_failure(self._guard, call, error)
        await self._close_after_error()

    def _release(self) -> None:
        self._first = _NOTHING
        call, self._call = self._call, None
        if call is not None:
            self._guard.gate.running.pop(call, None)
            self._guard.settle_without_verdict(call)

    async def _close_after_error(self) -> None:
        """Close the source; what goes wrong here does not hide why."""
        with contextlib.suppress(Exception):
            await close_both(self._iterator, self._source)

    def _abandon(self) -> None:
        """Let go of the call here and now, and of the source as soon as its loop gets to it."""
        if (call := self._call) is None:
            return
        self._release()
        # Left to the garbage collector, the generators inside openai's streams get in each other's
        # way, and the connection stays open.
        with contextlib.suppress(RuntimeError):  # the loop is closed
            call.parts.loop.call_soon_threadsafe(_close_later, self._iterator, self._source)

    def __del__(self) -> None:
        # Dropped by a caller who never closed it: its place must not stay taken.
        self._abandon()


class _Span:
    """The time of a stream as a whole, and how much of it its reader took.

    Args:
        seconds: How long it may take.
        call: Its call; the time runs from when its attempt was sent.
        clock: Monotonic seconds; its first item has just come.
    """

    __slots__ = ("_away", "_gap", "left", "seconds", "timer", "until")

    def __init__(self, seconds: float, call: Call, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self.until = call.started + seconds
        self.left = clock()
        self.timer = Timer(seconds, call.parts.loop, clock)
        self._gap = call.parts.gap_timer
        self._away = 0.0

    def reader_came_back(self, now: float) -> None:
        """The reader asks for the next item, having had the last since `left`."""
        self._away += now - self.left

    @property
    def is_readers_fault(self) -> bool:
        """Whether the reader took more of the time than the source."""
        return self._away * 2 > self.seconds

    def timer_at(self, now: float) -> Timer:
        """The timer for a gap, or where less is left, one for the rest."""
        rest = self.until - now
        if self._gap is not None and self._gap.seconds <= rest:
            return self._gap
        self.timer.seconds = rest  # armed once, for one and the same moment
        return self.timer


_closing: set[asyncio.Task[None]] = set()


def _close_later(iterator: Any, source: Any) -> None:
    async def close() -> None:
        with contextlib.suppress(Exception):  # nobody is left to hear of it
            await close_both(iterator, source)

    task = asyncio.get_running_loop().create_task(close())
    _closing.add(task)  # a loop keeps no task alive by itself
    task.add_done_callback(_closing.discard)


def _limit_of_first_item(timeout: TimeoutPolicy) -> float | None:
    """Seconds from sending to the first item; None where an attempt's own time is shortest."""
    own, whole = timeout.first_item, timeout.stream_total
    usual = own or timeout.attempt or math.inf
    return whole if whole is not None and whole < usual else own
