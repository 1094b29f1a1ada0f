"""A stream whose first item is there: until then it can be begun elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar

__all__ = ["OpenedStream"]

T_co = TypeVar("T_co", covariant=True)

_NOTHING: Any = object()


class OpenedStream(AsyncIterator[T_co], Generic[T_co]):
    """Passes on the items of a source; closing it closes the source."""

    __slots__ = ("_first", "_iterator", "_source")

    def __init__(self, source: Any) -> None:
        self._source = source
        self._iterator: AsyncIterator[T_co] = aiter(source)
        self._first: Any = _NOTHING

    async def open(self) -> Self:
        """Wait for the first item; a source that cannot give it is closed."""
        try:
            self._first = await anext(self._iterator, _NOTHING)
        except BaseException:
            await self.aclose()
            raise
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        first, self._first = self._first, _NOTHING
        return await anext(self._iterator) if first is _NOTHING else first

    async def aclose(self) -> None:
        """Stop here, and close the source."""
        self._first = _NOTHING
        close = getattr(self._iterator, "aclose", None) or getattr(self._source, "aclose", None)
        if close is not None:
            await close()
