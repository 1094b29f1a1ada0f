"""Work in flight of a worker, in shared memory that its master reads when the worker has died.

A worker that is killed cannot write its journal. So each request and each tracked piece of work
has an entry here while it lasts; guarded calls have none, since they are part of these.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

__all__ = ["LedgerEntry", "WorkerLedger"]

_SLOTS = 1024
_SLOT = struct.Struct("<?16s30sd90p")  # used, id, kind, began, name
_PATH = struct.Struct("<H1022s")  # length, path of the journal
_OVERFLOW = struct.Struct("<q")  # entries without a slot
_FIRST_SLOT = _PATH.size + _OVERFLOW.size


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One piece of work.

    Attributes:
        id: The id of its record in a journal.
        name: As in the journal, cut to 89 bytes.
        kind: As in the journal: ``request``, ``websocket``, ``task``, ``child``, or another word.
        began: Seconds since 1970.
    """

    id: str
    name: str
    kind: str
    began: float


class WorkerLedger:
    """Memory shared by the process that creates it and its forks, of which one writes."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _FIRST_SLOT + _SLOTS * _SLOT.size)
        self._free = list(range(_SLOTS))

    @property
    def journal(self) -> str:
        """The path of the writer's own journal; empty if it has none."""
        length, text = _PATH.unpack_from(self._memory, 0)
        return str(text[:length].decode(errors="surrogateescape"))

    @journal.setter
    def journal(self, path: str) -> None:
        text = path.encode(errors="surrogateescape")
        if len(text) <= _PATH.size - 2:
            _PATH.pack_into(self._memory, 0, len(text), text)

    def add(self, entry: LedgerEntry) -> int:
        """Write an entry; returns its slot, or -1 if none is free."""
        try:
            slot = self._free.pop()
        except IndexError:
            self._count_overflow(1)
            return -1
        name = entry.name.encode()[:89]
        # Mark it as used last: the worker may die in between.
        at = _FIRST_SLOT + slot * _SLOT.size
        _SLOT.pack_into(
            self._memory, at, False, bytes.fromhex(entry.id), entry.kind.encode(), entry.began, name
        )
        self._memory[at] = 1
        return slot

    def remove(self, slot: int) -> None:
        """Remove the entry in a slot."""
        if slot < 0:
            self._count_overflow(-1)
            return
        self._memory[_FIRST_SLOT + slot * _SLOT.size] = 0
        self._free.append(slot)

    def entries(self) -> list[LedgerEntry]:
        """All entries, the oldest first."""
        found = []
        for slot in range(_SLOTS):
            used, key, kind, began, name = _SLOT.unpack_from(
                self._memory, _FIRST_SLOT + slot * _SLOT.size
            )
            if used:
                kind = kind.rstrip(b"\0").decode()
                found.append(LedgerEntry(key.hex(), name.decode(errors="ignore"), kind, began))
        return sorted(found, key=lambda entry: entry.began)

    @property
    def overflow(self) -> int:
        """The number of works in flight without an entry."""
        return int(_OVERFLOW.unpack_from(self._memory, _PATH.size)[0])

    def _count_overflow(self, change: int) -> None:
        _OVERFLOW.pack_into(self._memory, _PATH.size, self.overflow + change)

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()
