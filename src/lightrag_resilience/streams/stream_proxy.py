"""Streams that pass a source's items on, and one whose first item is fetched in advance."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar

__all__ = ["PrimedStream", "StreamProxy", "close_both", "sent_into", "thrown_into"]

T_co = TypeVar("T_co", covariant=True)

_NOTHING: Any = object()


class StreamProxy(AsyncIterator[T_co], Generic[T_co]):
    """Passes on a source's items and its public attributes, such as an SDK's `response`.

    Items that the source's own methods read bypass this stream.

    Args:
        source: The iterable, closed with this stream.
    """

    __slots__ = ("_iterator", "_source")

    def __init__(self, source: Any) -> None:
        self._source = source
        self._iterator: AsyncIterator[T_co] = aiter(source)

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __getattr__(self, name: str) -> Any:
        # copy() looks for private names before there is a source: that would recurse.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._source, name)

    async def close(self) -> None:
        """As `aclose`: SDKs name it so."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the source."""
        await self._close_source()

    async def _close_source(self) -> None:
        await close_both(self._iterator, self._source)


class PrimedStream(StreamProxy[T_co]):
    """A stream whose first item is fetched in advance: until then another may take its place."""

    __slots__ = ("_first",)

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._first: Any = _NOTHING

    async def open(self) -> Self:
        """Wait for the first item; a source that fails at it is closed."""
        try:
            self._first = await anext(self._iterator, _NOTHING)
        except BaseException:
            with contextlib.suppress(Exception):  # an error here must not hide the first one
                await self.aclose()
            raise
        return self

    async def __anext__(self) -> T_co:
        first, self._first = self._first, _NOTHING
        return await anext(self._iterator) if first is _NOTHING else first

    async def asend(self, value: Any) -> T_co:
        """Send a value into the source, for its next item."""
        item: T_co = await sent_into(self._iterator, value)
        return item

    async def athrow(self, error: BaseException) -> T_co:
        """Raise an error in the source; returns its next item if it handles the error."""
        item: T_co = await thrown_into(self._iterator, error)
        return item

    async def aclose(self) -> None:
        """Close the source."""
        self._first = _NOTHING
        await super().aclose()


async def sent_into(source: Any, value: Any) -> Any:
    """Send a value into a source for its next item; only a generator takes the value."""
    send = getattr(source, "asend", None)
    return await (anext(source) if send is None else send(value))


async def thrown_into(source: Any, error: BaseException) -> Any:
    """Throw an error of the reader into a source; returns its next item if it handles the error.

    Raises:
        Exception: `error`, from a source that is no generator; or what the source raises.
        StopAsyncIteration: The source ended.
    """
    if (throw := getattr(source, "athrow", None)) is None:
        raise error
    return await throw(error)


async def close_both(iterator: Any, source: Any) -> None:
    """Close an iterator and its source: closing one need not close the other."""
    try:
        await _close(iterator)
    finally:
        if source is not iterator:
            await _close(source)


async def _close(part: Any) -> None:
    close = getattr(part, "aclose", None) or getattr(part, "close", None)
    if close is not None and inspect.isawaitable(closing := close()):
        await closing
