"""The journal of abandoned work: append only, on the disk before anything is cancelled."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import socket
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from lightrag_resilience.config.validation import shown
from lightrag_resilience.errors import PolicyError

if sys.platform != "win32":
    import fcntl

__all__ = ["EFFECTS", "STATES", "AbandonedWork", "Journal", "is_kind"]

STATES = frozenset({"queued", "not_sent", "in_flight", "outcome_unknown"})
EFFECTS = frozenset({"pure", "idempotent_write", "unsafe_write", "unknown"})

_VERSION = 2
_KIND = re.compile(r"[A-Za-z0-9_.:-]{1,30}")
_MAX_BYTES = 4 * 1024 * 1024  # then the file is rotated; one rotated file is kept
_MAX_LINE = 64 * 1024  # bytes
_MAX_TEXT = 500  # characters
_MAX_SECONDS = 6e10  # about the year 3870
_MAX_COUNT = 2**31  # of a process id or an attempt


@functools.cache
def _boot() -> str:
    """The id of this boot of the machine; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class AbandonedWork:
    """A piece of work that did not end in time. It holds no argument and no text of it.

    Attributes:
        name: The dependency of a call, or the name of a task, a request or an ingest.
        kind: ``call``, ``stream``, ``request``, ``websocket``, ``task``, ``child`` or ``document``,
            or another word of at most 30 letters, digits and ``_.:-``.
        state: One of `STATES`.
        seconds: How long it had been in flight.
        signal: What requested the drain, such as ``SIGTERM``.
        operation: The operation, where that is known, such as ``extract`` or ``ingest``.
        parent: The `id` of the record of the work that it was a part of; empty if there is none.
        document: The id of the document, if it was about one.
        track: LightRAG's track id of the document's upload.
        workspace: LightRAG's workspace.
        attempt: The number of the attempt.
        effect: One of `EFFECTS`: what running it again does.
        started: Monotonic seconds at which it began, of this `boot` and `host`; None if unknown.
        at: Seconds since 1970 at which it was given up; it began `seconds` before.
        id: Unique.
        pid: The process id.
        host: The name of the machine.
        boot: The id of the machine's boot; empty where the system has none.
    """

    name: str
    kind: str
    state: str
    seconds: float
    signal: str
    operation: str = ""
    parent: str = ""
    document: str = ""
    track: str = ""
    workspace: str = ""
    attempt: int = 1
    effect: str = "unknown"
    started: float | None = None
    at: float = field(default_factory=time.time)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=_boot)

    @property
    def started_at(self) -> float:
        """Seconds since 1970 at which it began."""
        return self.at - self.seconds


def _ignore(_file: Path, _line: int) -> None:
    """Skip a damaged line."""


class Journal:
    """A file of JSON lines, to which several processes may append.

    Args:
        path: The file; its folder is created by the first write.

    Raises:
        PolicyError: `path` is not the path of a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        is_path = isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str)
        if not is_path or not os.fspath(path).strip() or "\0" in os.fspath(path):
            raise PolicyError(f"A journal is the path of a file, not {shown(path)}")
        self.path = Path(path)

    def write(self, records: Iterable[AbandonedWork]) -> None:
        """Append records, and wait until the disk has them.

        Raises:
            OSError: The file cannot be written.
        """
        lines = [_line(record) for record in records]
        if not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rotate_if_large()
        descriptor = _opened(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            # One write for each line, so that appends of several processes do not mix. The empty
            # one ends a line that a process which died may have left torn.
            for line in ("", *lines):
                data = f"{line}\n".encode()
                if os.write(descriptor, data) < len(data):
                    raise OSError(errno.ENOSPC, "Only a part of a record was written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, damage: Callable[[Path, int], object] = _ignore) -> Iterator[AbandonedWork]:
        """All records, the oldest first.

        Args:
            damage: Called with the file and the line number of each torn or malformed line, which
                is skipped.

        Raises:
            OSError: The file exists and cannot be read.
        """
        for path in (self._rotated, self.path):
            try:
                file = open(path, "rb", opener=_opened)  # noqa: SIM115 - closed below
            except FileNotFoundError:
                continue
            with file:
                for number, line in enumerate(_lines(file), 1):
                    if (record := _parsed(line)) is not None:
                        yield record
                    elif line.strip():
                        damage(path, number)

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self.path.exists() or self._rotated.exists()

    def problem(self) -> str:
        """Why writing would fail, as a sentence without its full stop; empty if it would not."""
        path = self.path
        while not path.exists() and path != path.parent:
            path = path.parent  # the folders below are created by the first write
        if path == self.path and not path.is_file():
            return f"the journal {self.path} is no regular file"
        if (path != self.path and not path.is_dir()) or not os.access(path, os.W_OK):
            return f"the journal {self.path} cannot be written: see {path}"
        return ""

    @property
    def _rotated(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    def _rotate_if_large(self) -> None:
        # If it fails, for example because another process is rotating, append to the large file.
        with contextlib.suppress(OSError):
            if self.path.stat().st_size > _MAX_BYTES:
                with _locked(self.path) as found:
                    now = self.path.stat()  # another process may have rotated it before the lock
                    if os.path.samestat(found, now) and now.st_size > _MAX_BYTES:
                        self.path.replace(self._rotated)


def _opened(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file; raise OSError for a pipe or a device, which may block for ever."""
    # Opening a named pipe blocks without O_NONBLOCK, which Windows lacks, as it lacks such pipes.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "It is no regular file")
    return descriptor


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, each cut to `_MAX_LINE` bytes."""
    while line := file.readline(_MAX_LINE):
        end = line
        while len(end) == _MAX_LINE and not end.endswith(b"\n"):
            end = file.readline(_MAX_LINE)
        yield line


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[os.stat_result]:
    """Hold the lock for rotating this file; raise OSError if another process holds it."""
    if sys.platform == "win32":  # where an open file cannot be renamed at all
        yield path.stat()
        return
    descriptor = os.open(path, os.O_WRONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


def is_kind(kind: str) -> bool:
    """Whether it is a word that the journal accepts: other text could hold a secret."""
    return _KIND.fullmatch(kind) is not None


_FIELDS_OF_VERSION_1 = {"name", "kind", "state", "seconds", "signal", "at", "id", "pid", "host"}
_NUMBERS = {"seconds", "started", "at"}
_COUNTS = {"attempt", "pid"}
_WORDS = {"state": STATES, "effect": EFFECTS}
_FIELDS = {each.name for each in fields(AbandonedWork)}


def _line(record: AbandonedWork) -> str:
    values = {
        name: value[:_MAX_TEXT] if isinstance(value, str) else value
        for name, value in asdict(record).items()
    }
    return json.dumps({"version": _VERSION, **values, "started_at": record.started_at})


def _parsed(line: bytes) -> AbandonedWork | None:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(version := found.pop("version", None)) is not int:
        return None
    if version == 1 and found.keys() == _FIELDS_OF_VERSION_1:
        found["boot"] = ""
    elif version == _VERSION and found.keys() == _FIELDS | {"started_at"}:
        if not _fits("at", found.pop("started_at")):
            return None
    else:
        return None
    return AbandonedWork(**found) if all(_fits(*item) for item in found.items()) else None


def _fits(name: str, value: object) -> bool:
    if name in _NUMBERS:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return (is_number and abs(value) < _MAX_SECONDS) or (name == "started" and value is None)  # type: ignore[arg-type]
    if name in _COUNTS:
        return type(value) is int and 0 < value < _MAX_COUNT
    if name == "kind":
        return isinstance(value, str) and is_kind(value)
    return isinstance(value, str) and (name not in _WORDS or value in _WORDS[name])
