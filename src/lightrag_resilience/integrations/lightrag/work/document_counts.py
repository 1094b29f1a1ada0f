"""How many documents of a LightRAG have which status, for who listens."""

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
_LONGEST = 10.0  # seconds that one may take


class DocumentCounts:
    """Counts the documents of one LightRAG twice a minute, as long as somebody listens.

    Args:
        rag: The LightRAG, whose storages are initialized by the time `begin` is called.
        events: Where it is told.
        every: Seconds between two counts.
    """

    def __init__(self, rag: Any, events: Events, every: float = _EVERY) -> None:
        self._rag = rag
        self._events = events
        self._every = every
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Count now, and from then on."""
        self._task = asyncio.get_running_loop().create_task(self._count_often())

    async def end(self) -> None:
        """Count no more."""
        if self._task is not None:
            await cancel_until_done([self._task], every=_LONGEST, attempts=1)

    async def _count_often(self) -> None:
        while True:
            if DocumentsCounted in self._events.subscribed:
                try:
                    await within(_LONGEST, self.count())
                except Exception as error:  # noqa: BLE001 - whatever it is, the next may do better
                    _log.debug("Documents could not be counted: %s", type(error).__name__)
            await asyncio.sleep(self._every)

    async def count(self) -> None:
        """Count, and tell: also a status that no document has."""
        counts = await self._rag.doc_status.get_status_counts()
        for status in DocStatus:
            found = counts.get(status.value, 0)
            self._events.publish(DocumentsCounted(self._rag.workspace or "", status.value, found))
