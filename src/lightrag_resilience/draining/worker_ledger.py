"""What a worker has in flight, in memory that its master can read when the worker has died.

A worker that is killed cannot write its journal. So each request and each tracked piece of work
has a line here as long as it lasts; guarded calls have none of their own, they are part of these.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

__all__ = ["LedgerEntry", "WorkerLedger"]

_LINES = 1024
_LINE = struct.Struct("<?16s30sd90p")  # used, id, kind, began, name
_PATH = struct.Struct("<H1022s")  # bytes, path of the journal
_MORE = struct.Struct("<q")  # how many had no room
_START = _PATH.size + _MORE.size


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One piece of work.

    Attributes:
        id: That of its record in a journal.
        name: As in the journal.
        kind: As in the journal: ``request``, ``websocket``, ``task``, ``child``, or another word.
        began: Seconds since 1970.
    """

    id: str
    name: str
    kind: str
    began: float


class WorkerLedger:
    """Shared by the process that makes it and those that it forks; one of these writes."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _START + _LINES * _LINE.size)
        self._free = list(range(_LINES))

    @property
    def journal(self) -> str:
        """Where the writer keeps its own journal; empty where it has none."""
        length, text = _PATH.unpack_from(self._memory, 0)
        return str(text[:length].decode(errors="surrogateescape"))

    @journal.setter
    def journal(self, path: str) -> None:
        text = path.encode(errors="surrogateescape")
        if len(text) <= _PATH.size - 2:
            _PATH.pack_into(self._memory, 0, len(text), text)

    def add(self, line: LedgerEntry) -> int:
        """Write a line; returns its number, or -1 where there is no room for more."""
        try:
            number = self._free.pop()
        except IndexError:
            self._count_overflow(1)
            return -1
        name = line.name.encode()[:89]
        # The line first, and then that it counts: death may come in between.
        at = _START + number * _LINE.size
        _LINE.pack_into(
            self._memory, at, False, bytes.fromhex(line.id), line.kind.encode(), line.began, name
        )
        self._memory[at] = 1
        return number

    def remove(self, number: int) -> None:
        """Strike a line out."""
        if number < 0:
            self._count_overflow(-1)
            return
        self._memory[_START + number * _LINE.size] = 0
        self._free.append(number)

    def entries(self) -> list[LedgerEntry]:
        """What is in flight, the oldest first."""
        found = []
        for number in range(_LINES):
            used, key, kind, began, name = _LINE.unpack_from(
                self._memory, _START + number * _LINE.size
            )
            if used:
                kind = kind.rstrip(b"\0").decode()
                found.append(LedgerEntry(key.hex(), name.decode(errors="ignore"), kind, began))
        return sorted(found, key=lambda line: line.began)

    @property
    def overflow(self) -> int:
        """How much more is in flight, for which there was no room."""
        return int(_MORE.unpack_from(self._memory, _PATH.size)[0])

    def _count_overflow(self, change: int) -> None:
        _MORE.pack_into(self._memory, _PATH.size, self.overflow + change)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
