"""Wait on an event loop for what happens elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll until the condition is true, for so long at the most."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it happens in another task, thread or process
            await asyncio.sleep(0.005)
