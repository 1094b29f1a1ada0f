"""A stream is one call: admitted at its start, judged at its end, holding its place until then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, Self, TypeVar

from ._call import Call, current_call

__all__ = ["GuardedStream"]

T_co = TypeVar("T_co", covariant=True)

_NOTHING: Any = object()


class _Settler(Protocol):
    """The guard's side: how a call ends."""

    clock: Callable[[], float]

    def settle_success(self, call: Call, duration: float | None = None) -> None: ...
    def settle_error(self, call: Call, error: BaseException) -> None: ...
    def settle_without_verdict(self, call: Call) -> None: ...
    def stall_error(self) -> Exception: ...


class GuardedStream(AsyncIterator[T_co], Generic[T_co]):
    """Passes a source's items on, each waited for no longer than an attempt may take.

    An error, a timeout included, is a failure of the dependency. Closing early, being cancelled or
    being dropped is no verdict; the source is closed with it.
    """

    __slots__ = ("_call", "_first", "_guard", "_iterator", "_source", "_waited")

    def __init__(self, guard: _Settler, call: Call, source: Any) -> None:
        self._guard = guard
        self._call: Call | None = call
        self._source = source
        self._iterator: AsyncIterator[T_co] = aiter(source)
        self._first: Any = _NOTHING
        self._waited: float | None = None

    async def open(self) -> Self:
        """Wait for the first item: a source that cannot begin fails where it may be retried.

        The caller's attempt times and judges this wait.
        """
        call = self._call
        assert call is not None  # noqa: S101 - a stream is opened once, when it is new
        try:
            self._first = await anext(self._iterator)
            self._waited = self._guard.clock() - call.started
        except StopAsyncIteration:
            self._end()
        except BaseException:
            self._call = None
            await self._close_source()
            raise
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        if (first := self._first) is not _NOTHING:
            self._first = _NOTHING
            return first  # type: ignore[no-any-return]
        if (call := self._call) is None:
            raise StopAsyncIteration
        try:
            return await self._next_in_time(call)
        except StopAsyncIteration:
            self._end()
            raise
        except Exception as error:
            if self._call is not None:  # else another task closed it, which is why it failed
                self._call = None
                self._guard.settle_error(call, error)
            await self._close_source()
            raise
        except BaseException:
            await self.aclose()
            raise

    async def _next_in_time(self, call: Call) -> T_co:
        timer, parent = call.parts.gap_timer, current_call.get()
        call.guard, call.parent = self._guard, parent
        token = current_call.set(call)
        if timer is not None:
            timer.start(call, timer.clock())
        try:
            return await anext(self._iterator)
        except asyncio.CancelledError as error:
            if timer is not None and timer.stop(call):
                raise self._guard.stall_error() from error
            raise
        finally:
            if timer is not None:
                timer.stop(call)
            current_call.reset(token)
            call.guard = None

    async def aclose(self) -> None:
        """Stop here, with no verdict on the dependency, and close the source."""
        self._release()
        await self._close_source()

    def _end(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            self._guard.settle_success(call, self._waited)

    def _release(self) -> None:
        self._first = _NOTHING
        call, self._call = self._call, None
        if call is not None:
            self._guard.settle_without_verdict(call)

    async def _close_source(self) -> None:
        close = getattr(self._iterator, "aclose", None) or getattr(self._source, "aclose", None)
        if close is not None:
            await close()

    def __del__(self) -> None:
        # Dropped by a caller who never closed it: its place must not stay taken.
        self._release()
