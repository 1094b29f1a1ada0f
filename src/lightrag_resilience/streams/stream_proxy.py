"""What a stream that is passed on looks like, and one whose first item is there already."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar

__all__ = ["PrimedStream", "StreamProxy", "close_both", "sent_into", "thrown_into"]

T_co = TypeVar("T_co", covariant=True)

_NOTHING: Any = object()


class StreamProxy(AsyncIterator[T_co], Generic[T_co]):
    """A source's items, and whatever else of the source is public, such as an SDK's `response`.

    What a source's own methods read goes past this stream.

    Args:
        source: What is iterated over, and closed with this.
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
        # Private names are looked for while a copy is made, before there is a source.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._source, name)

    async def close(self) -> None:
        """As `aclose`, under the name that SDKs give it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Stop here, and close the source."""
        await self._close_source()

    async def _close_source(self) -> None:
        await close_both(self._iterator, self._source)


class PrimedStream(StreamProxy[T_co]):
    """A stream whose first item is there: until then it can be begun elsewhere."""

    __slots__ = ("_first",)

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._first: Any = _NOTHING

    async def open(self) -> Self:
        """Wait for the first item; a source that cannot give it is closed."""
        try:
            self._first = await anext(self._iterator, _NOTHING)
        except BaseException:
            with contextlib.suppress(Exception):  # what goes wrong here does not hide why
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
        """Raise an error in the source, for what it makes of it."""
        item: T_co = await thrown_into(self._iterator, error)
        return item

    async def aclose(self) -> None:
        """Stop here, and close the source."""
        self._first = _NOTHING
        await super().aclose()


async def sent_into(source: Any, value: Any) -> Any:
    """The next item of a source that is sent a value; one that is no generator takes none."""
    send = getattr(source, "asend", None)
    return await (anext(source) if send is None else send(value))


async def thrown_into(source: Any, error: BaseException) -> Any:
    """What a source makes of an error of its reader; one that is no generator makes nothing of it.

    Raises:
        Exception: `error` or another, as the source has it.
        StopAsyncIteration: The source ended.
    """
    if (throw := getattr(source, "athrow", None)) is None:
        raise error
    return await throw(error)


async def close_both(iterator: Any, source: Any) -> None:
    """Close an iterator and what it reads from: closing one need not close the other."""
    try:
        await _close(iterator)
    finally:
        if source is not iterator:
            await _close(source)


async def _close(part: Any) -> None:
    close = getattr(part, "aclose", None) or getattr(part, "close", None)
    if close is not None and inspect.isawaitable(closing := close()):
        await closing
