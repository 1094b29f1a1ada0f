"""Records of what a drain gives up: one for each piece of work, written before it is cancelled."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .in_flight import TrackedWork, records_of
from .journal import AbandonedWork, Journal

__all__ = ["AbandonedWorkLog"]

_log = logging.getLogger("lightrag_resilience")

# Seconds. A server may cancel requests just before it sends `lifespan.shutdown`: record those too.
_RECENT = 1.0
_MAX_RECENT = 1024  # requests
_POLL = 0.01  # seconds between two polls of the writer
_MIN_TIME = 0.1  # seconds for the disk, even where none are left


class AbandonedWorkLog:
    """The records of one coordinator.

    Args:
        journal: Where they are written; None keeps them for the report alone.

    Attributes:
        records: All records so far.
    """

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal
        self.records: tuple[AbandonedWork, ...] = ()
        self._recorded: set[Any] = set()
        self._cancelled: deque[tuple[float, TrackedWork]] = deque(maxlen=_MAX_RECENT)

    def __contains__(self, work: Any) -> bool:
        return work in self._recorded

    def record(self, works: Iterable[Any], reason: str) -> None:
        """Write records of works that have none yet, and wait for the disk."""
        new = [work for work in works if work not in self._recorded]
        self._recorded.update(new)
        records = tuple(record for work in new for record in records_of(work, reason))
        self.records += records
        if self.journal is None:
            return
        try:
            self.journal.write(records)
        except OSError as error:
            name = type(error).__name__
            _log.error("The journal %s cannot be written: %s", self.journal.path, name)
            return
        for work in new:
            if isinstance(work, TrackedWork):
                work.remove_from_ledger()  # or the master would record it again

    async def record_in_time(
        self, works: Iterable[Any], reason: str, has_time: Callable[[], bool]
    ) -> None:
        """As `record`, in a thread of its own: those of the event loop may all be busy."""
        writer = threading.Thread(target=self.record, args=(works, reason), name="journal")
        try:
            writer.start()
        except RuntimeError:  # the system allows no more threads
            self.record(works, reason)
        min_end = time.monotonic() + _MIN_TIME
        while writer.is_alive():
            if not has_time() and time.monotonic() >= min_end:
                _log.error("The journal takes too long: abandoned work may be missing from it")
                return
            await asyncio.sleep(_POLL)

    def remember_cancelled(self, work: TrackedWork) -> None:
        """Keep a request that its client or its server cancelled, in case a drain follows."""
        if work.kind != "task":  # a task that its own program cancels is not abandoned
            self._cancelled.append((time.monotonic(), work))

    def recently_cancelled(self) -> list[TrackedWork]:
        """Requests that were cancelled within the last second."""
        since = time.monotonic() - _RECENT
        return [work for at, work in self._cancelled if at >= since]
