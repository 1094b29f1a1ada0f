"""Parts of tests of fallback chains."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

from support.guards import Scripted


def named(name: str, *steps: Any) -> Any:
    """A coroutine function that does its steps in turn."""
    script = Scripted(*steps)

    async def function(*args: Any, **kwargs: Any) -> Any:
        return await script(*args, **kwargs)

    function.__name__ = name
    vars(function)["script"] = script
    return function


# ---------------------------------------------------------------------- streams


class Source:
    """Streams words; an exception among them is raised. Says how often it was begun and closed."""

    def __init__(self, *words: Any) -> None:
        self.words = words
        self.begun = self.closed = 0

    async def generator(self) -> AsyncIterator[Any]:
        self.begun += 1
        try:
            for word in self.words:
                if isinstance(word, Exception):
                    raise word
                if isinstance(word, int):
                    await asyncio.sleep(word)
                else:
                    yield word
        finally:
            self.closed += 1

    def iterator(self) -> AsyncIterator[Any]:
        return self.generator()

    async def coroutine(self) -> AsyncIterator[Any]:
        return self.generator()


async def received(function: Any) -> list[Any]:
    stream = function()
    return [word async for word in (await stream if inspect.isawaitable(stream) else stream)]
