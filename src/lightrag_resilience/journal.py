"""What a process gave up when it ended: append only, on the disk before anything is cancelled."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Abandoned", "Journal"]

_VERSION = 1
_LARGEST = 4 * 1024 * 1024  # bytes; then the file is put aside, and the one before is forgotten
_LONGEST_LINE = 16 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A piece of work that did not end in time. It holds no argument and no text of the work.

    Attributes:
        name: The dependency of a call, or the name of a task.
        kind: ``call``, ``stream`` or ``task``.
        state: ``not_sent``, ``in_flight``, or ``outcome_unknown``.
        seconds: How long it had been under way.
        signal: What told the process to stop.
        at: Seconds since 1970.
        id: Different for each.
        pid: The process.
        host: The machine.
    """

    name: str
    kind: str
    state: str
    seconds: float
    signal: str
    at: float = field(default_factory=time.time)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)


class Journal:
    """A file of lines of JSON, to which several processes may write.

    Args:
        path: The file; its folder is made when it is needed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, records: Iterable[Abandoned]) -> None:
        """Append records, and wait until the disk has them.

        Raises:
            OSError: The file cannot be written.
        """
        lines = [json.dumps({"version": _VERSION, **asdict(record)}) for record in records]
        if not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._put_aside_if_large()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One write for each line: appends of several processes do not mix. The first ends a
            # line that another process may have left torn.
            for line in ("", *lines):
                os.write(descriptor, f"{line}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> Iterator[Abandoned]:
        """All records, the oldest first; what is torn or makes no sense is left out."""
        for path in (self._older, self.path):
            try:
                with path.open("rb") as file:
                    for line in iter(lambda: file.readline(_LONGEST_LINE), b""):
                        if (record := _parsed(line)) is not None:
                            yield record
            except FileNotFoundError:
                continue

    @property
    def _older(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    def _put_aside_if_large(self) -> None:
        try:
            is_large = self.path.stat().st_size > _LARGEST
        except FileNotFoundError:
            return
        if is_large:
            self.path.replace(self._older)


def _parsed(line: bytes) -> Abandoned | None:
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
        return None
    kinds: dict[str, type | tuple[type, ...]] = {
        "name": str,
        "kind": str,
        "state": str,
        "seconds": (int, float),
        "signal": str,
        "at": (int, float),
        "id": str,
        "pid": int,
        "host": str,
    }
    fits = found.keys() == kinds.keys() and all(
        isinstance(found[name], kind) and not isinstance(found[name], bool)
        for name, kind in kinds.items()
    )
    return Abandoned(**found) if fits else None
