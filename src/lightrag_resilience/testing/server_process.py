"""Base of the test servers: a process that ends with the process that started it."""

from __future__ import annotations

import abc
import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

__all__ = ["HOST", "SERVER_PORTS", "ServerProcess", "ids_of", "last_output", "send_signal"]

HOST = "127.0.0.1"

# Below every system's ephemeral ports, Redis's cluster bus (10 000 higher) too: while the server
# is down no outgoing connection takes its port, and no client connects to itself there.
SERVER_PORTS = range(10_000, 22_000)

_PORT_ATTEMPTS = 10
_POLL = 0.005  # seconds between two checks whether the server is ready
_OUTPUT_SHOWN = 2000  # characters of the server's output in an error

# PDEATHSIG: the kernel kills the server when we die, even of SIGKILL. A small Python process sets
# it and then becomes the server, because a preexec_fn can deadlock where threads run. It is set
# after the change of user, which clears it; the change comes late, because the other user may have
# no right to read this Python.
_WITH_ITS_PARENT = """\
import ctypes, os, sys
user, group = map(int, sys.argv.pop(2).split(":"))
if user >= 0:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # the parent died before PDEATHSIG was set
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class _Child:
    """A process that may not run yet: an interrupt can come at any moment of its start."""

    spawned: Future[subprocess.Popen[bytes]] = field(default_factory=Future)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(
        self,
        command: Sequence[str],
        output: Path,
        user: str | None,
        environment: Mapping[str, str] | None,
    ) -> None:
        """Start the command and wait for its end; `spawned` has the process or the error.

        With a user, which only root may choose, it runs with the user's own group and in the
        folder of its output, as the user may have no right to our working directory.
        """
        folder = output.parent if user else None
        if sys.platform == "linux":
            own_pid = str(os.getpid())
            ids = ":".join(map(str, ids_of(user) if user else (-1, -1)))
            command = [sys.executable, "-I", "-S", "-c", _WITH_ITS_PARENT, own_pid, ids, *command]
            user = None
        try:
            with output.open("wb") as file:
                spawned = subprocess.Popen(  # noqa: S603 - our own command, no shell
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the terminal reaches only its owner
                    cwd=folder,
                    env=environment,
                    user=user,
                    group=ids_of(user)[1] if user else None,
                    extra_groups=[] if user else None,
                )
        except BaseException as error:  # noqa: BLE001 - raised by `spawned.result()`
            self.spawned.set_exception(error)
        else:
            self.spawned.set_result(spawned)
            spawned.wait()
        finally:
            self.ended.set()


class ServerProcess(abc.ABC):
    """A server on a port of 127.0.0.1 with a temporary directory, both its own.

    Its methods block. On Linux the server dies with the process that started it, however that
    ends; only a SIGKILL leaves the directory behind. It belongs to that process: a forked child
    that exits does not stop it.

    A subclass gives the command line, and says when the server is ready.
    """

    _name: ClassVar[str]
    _start_limit: ClassVar[float]  # seconds until it is ready
    _stop_limit: ClassVar[float]  # seconds after `_stop_signal`; as many again after SIGKILL
    _stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    _environment: ClassVar[Mapping[str, str] | None] = None  # None: ours

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._directory: Path | None = None
        self._owner = 0  # process id
        self._process: _Child | None = None

    @property
    def running(self) -> bool:
        """Whether the process exists, even if paused."""
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
            raise RuntimeError(f"The {self._name} server does not run")
        return self._process.spawned.result(self._stop_limit).pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return once it is ready.

        Raises:
            RuntimeError: It does not start (with its last output), or runs already.
        """
        if self.running or self._owner not in {0, os.getpid()}:
            raise RuntimeError(f"This {self._name} server runs already")
        port = self.port
        self._owner = os.getpid()  # first of all: from here on `stop` cleans up
        try:
            if self._directory is None:
                atexit.register(self.stop)
                name = f"{self._name.lower()}-server-{secrets.token_hex(8)}"
                self._directory = Path(tempfile.gettempdir(), name)  # known before it exists
                self._directory.mkdir(mode=0o700)
                self._initialize(self._directory)
            self._start_on_a_port(self._directory)
        except BaseException:
            self.stop()
            self.port = port
            raise

    def stop(self) -> None:
        """End the server and remove its directory; do nothing if it is stopped already."""
        if self._owner != os.getpid():
            return  # never started, or a forked child's copy of what its parent owns
        if self.running:
            self._unfreeze()  # a paused process handles no signal
            self._signal(self._stop_signal)
            self._wait_for_end()
        self.kill()
        if self._directory is not None:
            self._clean_up(self._directory)
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory, self._process, self._owner = None, None, 0
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """End the server as ``kill -9`` does and return once it is gone; its directory stays."""
        if self.running:
            self._signal(signal.SIGKILL)
            self._wait_for_end()

    def pause(self) -> None:
        """Freeze the server: connections stay open, nothing is answered until `resume`.

        Raises:
            RuntimeError: It does not run.
        """
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server continue after `pause`.

        Raises:
            RuntimeError: It does not run.
        """
        if not self.running:
            raise RuntimeError(f"The {self._name} server does not run")
        self._unfreeze()

    def restart(self) -> None:
        """Kill the server and start it again on the same port, with the same directory.

        Raises:
            RuntimeError: It does not start; with its last output.
        """
        self.kill()
        self.start()

    # ------------------------------------------------------------------ for subclasses

    @abc.abstractmethod
    def _command(self, directory: Path) -> list[str]:
        """The command line; the first word is a path."""

    @abc.abstractmethod
    def _is_ready(self, pid: int, directory: Path) -> bool:
        """Whether the server with this process id answers, and not another one on its port."""

    def _initialize(self, directory: Path) -> None:  # noqa: B027 - most servers need nothing
        """Fill a new directory before the first start."""

    def _clean_up(self, directory: Path) -> None:  # noqa: B027 - the same
        """Remove what the ended server left outside its directory."""

    def _user(self) -> str | None:
        """The system user the server runs as; None for ours."""
        return None

    def _unfreeze(self) -> None:
        self._signal(signal.SIGCONT)

    # ------------------------------------------------------------------ the process

    def _start_on_a_port(self, directory: Path) -> None:
        random = secrets.SystemRandom()
        ports = [self.port] if self.port else random.sample(SERVER_PORTS, _PORT_ATTEMPTS)
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
        _check_that_it_is_free(self.port, self._name)
        self._process = process = _Child()
        # PDEATHSIG refers to the thread that starts the process, so one thread stays until its end.
        threading.Thread(
            target=process.run,
            args=(self._command(directory), directory / "output", self._user(), self._environment),
            name=f"{self._name.lower()}-server",
            daemon=True,
        ).start()
        try:
            pid = process.spawned.result().pid
        except OSError as error:
            raise RuntimeError(f"The {self._name} server cannot be run: {error}") from error
        self._wait_until_ready(pid, directory)

    def _wait_until_ready(self, pid: int, directory: Path) -> None:
        deadline = time.monotonic() + self._start_limit
        while not self._is_ready(pid, directory):
            if not self.running or time.monotonic() > deadline:
                what = f"was not ready in {self._start_limit:g} s" if self.running else "ended"
                output = last_output((directory / "output").read_bytes())
                raise RuntimeError(f"The {self._name} server on port {self.port} {what}:\n{output}")
            time.sleep(_POLL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # it ended, or never began
            send_signal(self.pid, number)

    def _wait_for_end(self) -> None:
        if self._process is not None:
            self._process.ended.wait(self._stop_limit)


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def last_output(output: bytes) -> str:
    """The end of what a process wrote, for an error."""
    return output.decode(errors="replace")[-_OUTPUT_SHOWN:]


def ids_of(user: str) -> tuple[int, int]:
    """The numeric ids of a user and of the user's own group."""
    import pwd  # noqa: PLC0415 - Windows has none

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def _check_that_it_is_free(port: int, server: str) -> None:
    """Another server on the port could answer in place of ours, unnoticed.

    Raises:
        RuntimeError: The port is taken, or we have no right to it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RuntimeError(
                f"The {server} server cannot have port {port}: {error.strerror}"
            ) from error
