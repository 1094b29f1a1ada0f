"""A stream's items, each with a verdict before its reader gets it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

from lightrag_resilience.config.policies import Judge
from lightrag_resilience.failures.results import verdict_on

__all__ = ["JudgedItems"]


class JudgedItems(AsyncIterator[Any]):
    """Passes on the items of an iterator that are no failures.

    Args:
        iterator: Gives the items; what is sent, thrown or closed goes to it.
        dependency: Whose stream it is.
        item: Judges each item; None judges none.
        end: Judges the end by the last item, None in a stream without any.

    Raises:
        InvalidResultError: An item, or the end, was judged a failure.
    """

    __slots__ = ("_dependency", "_end", "_item", "_iterator", "_last")

    def __init__(
        self, iterator: AsyncIterator[Any], dependency: str, item: Judge | None, end: Judge | None
    ) -> None:
        self._iterator = iterator
        self._dependency = dependency
        self._item = item
        self._end = end
        self._last: Any = None

    async def __anext__(self) -> Any:
        return await self._judged(anext(self._iterator))

    def __getattr__(self, name: str) -> Any:
        """The iterator's own: that of a generator takes what is sent and thrown."""
        method = getattr(self._iterator, name)
        return (lambda it: self._judged(method(it))) if name in {"asend", "athrow"} else method

    async def _judged(self, step: Awaitable[Any]) -> Any:
        try:
            self._last = item = await step
        except StopAsyncIteration:
            judge, value, item = self._end, self._last, None
            if judge is None or (error := verdict_on(value, judge, self._dependency)) is None:
                raise
            raise error from None
        if self._item is not None:
            error = verdict_on(item, self._item, self._dependency)
            if error is not None:
                raise error
        return item
