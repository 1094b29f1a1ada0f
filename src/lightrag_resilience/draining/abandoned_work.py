"""What a drain gives up, written down once for each piece of work, before it is ended."""

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

_LATELY = 1.0  # seconds; a server that waits no longer tells the application only then
_MOST = 1024  # requests
_LOOK = 0.01  # seconds between two looks at whether the disk has it
_LEAST = 0.1  # seconds that the disk gets also where no time is left


class AbandonedWorkLog:
    """The records of one coordinator.

    Args:
        journal: Where they go; None keeps them for the report alone.

    Attributes:
        records: All of them.
    """

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal
        self.records: tuple[AbandonedWork, ...] = ()
        self._known: set[Any] = set()
        self._lately: deque[tuple[float, TrackedWork]] = deque(maxlen=_MOST)

    def __contains__(self, work: Any) -> bool:
        return work in self._known

    def record(self, works: Iterable[Any], reason: str) -> None:
        """Write records of work that has none, and wait for the disk."""
        new = [work for work in works if work not in self._known]
        self._known.update(new)
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
                work.remove_from_ledger()  # its master need not write it

    async def record_in_time(
        self, works: Iterable[Any], reason: str, has_time: Callable[[], bool]
    ) -> None:
        """The same in a thread of its own, as all those of the loop may be taken."""
        writer = threading.Thread(target=self.record, args=(works, reason), name="journal")
        try:
            writer.start()
        except RuntimeError:  # the system has no thread more
            self.record(works, reason)
        least = time.monotonic() + _LEAST
        while writer.is_alive():
            if not has_time() and time.monotonic() >= least:
                _log.error("The journal takes too long: what is given up may not be in it")
                return
            await asyncio.sleep(_LOOK)

    def remember_cancelled(self, work: TrackedWork) -> None:
        """A request was cancelled before it had ended, by its client or by its server."""
        if work.kind != "task":
            self._lately.append((time.monotonic(), work))

    def recently_cancelled(self) -> list[TrackedWork]:
        """Requests that were cancelled just now."""
        since = time.monotonic() - _LATELY
        return [work for at, work in self._lately if at >= since]
