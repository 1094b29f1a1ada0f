"""How many documents of a LightRAG have each status, as events."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from lightrag.base import DocStatus

from lightrag_resilience.events import DocumentsCounted, Events
from lightrag_resilience.runtime.tasks import cancel_until_done, within

__all__ = ["DocumentCounts"]

_log = logging.getLogger("lightrag_resilience")

_EVERY = 30.0  # seconds between two counts
_TIMEOUT = 10.0  # seconds for one count


class DocumentCounts:
    """Counts the documents of one LightRAG twice a minute, as long as the event has subscribers.

    Args:
        rag: The LightRAG, whose storages are initialized by the time `begin` is called.
        events: Publishes the counts.
        every: Seconds between two counts.
    """

    def __init__(self, rag: Any, events: Events, every: float = _EVERY) -> None:
        self._rag = rag
        self._events = events
        self._every = every
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Count now, and then regularly."""
        self._task = asyncio.get_running_loop().create_task(self._count_often())

    async def end(self) -> None:
        """Stop counting."""
        if self._task is not None:
            await cancel_until_done([self._task], every=_TIMEOUT, attempts=1)

    async def _count_often(self) -> None:
        while True:
            if DocumentsCounted in self._events.subscribed:
                try:
                    await within(_TIMEOUT, self.count())
                except Exception as error:  # noqa: BLE001 - the next count may succeed
                    _log.debug("Documents could not be counted: %s", type(error).__name__)
            await asyncio.sleep(self._every)

    async def count(self) -> None:
        """Count and publish, with 0 for a status that no document has."""
        counts = await self._rag.doc_status.get_status_counts()
        for status in DocStatus:
            found = counts.get(status.value, 0)
            self._events.publish(DocumentsCounted(self._rag.workspace or "", status.value, found))
