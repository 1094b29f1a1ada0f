"""A network between a client and a server that fails on command."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from functools import partial
from typing import Self

__all__ = ["TcpProxy"]

_HOST = "127.0.0.1"
_CHUNK = 64 * 1024  # bytes
_HELD = 64  # chunks in each direction of a connection: 4 MiB, then the sender has to wait
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_Held = asyncio.Queue[tuple[float, bytes | None]]  # when it came; b"" for the end, None a reset


class TcpProxy:
    """Passes connections on to a port of 127.0.0.1, slowly, or not at all.

    ``async with TcpProxy(server.port) as proxy:`` listens on ``proxy.port`` until the end. A switch
    holds from now on, for open connections and for what is still held, too.

    Args:
        target_port: Where the real server listens.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._delay = 0.0  # seconds; infinite while stalled
        self._dropping = False
        self._closing = False
        self._switched = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """What to give a Redis client."""
        return f"redis://{_HOST}:{self.port}/0"

    def pass_on(self) -> None:
        """Pass everything on at once, beginning with what is held."""
        self._switch(delay=0.0)

    def stall(self) -> None:
        """Accept connections and bytes, and pass nothing on in either direction."""
        self._switch(delay=math.inf)

    def delay(self, seconds: float) -> None:
        """Pass every chunk on so many seconds after it came, in the order they came."""
        self._switch(delay=seconds)

    def drop(self) -> None:
        """Reset all connections, and new ones as soon as they are made; held bytes are lost."""
        self._switch(delay=0.0, dropping=True)
        self._cut()

    def _cut(self) -> None:
        for connection in self._connections:
            connection.cancel()

    def _switch(self, *, delay: float, dropping: bool = False) -> None:
        self._delay, self._dropping = delay, dropping
        self._switched.set()
        self._switched = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._closing = False
        self._server = await asyncio.start_server(self._accept, _HOST, self.port, limit=_CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._closing = True
            self._server.close()
            self._cut()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    # ------------------------------------------------------------------ one connection

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._dropping or self._closing:
            _reset(writer)
            return
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(partial(self._ended, writer))

    def _ended(self, writer: asyncio.StreamWriter, connection: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        if connection.cancelled() or connection.exception() is not None:
            _reset(writer)
        else:
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self._delay == math.inf:  # a stalled network does not reach the server either
            await self._switched.wait()
        far_reader, far_writer = await asyncio.open_connection(
            _HOST, self._target_port, limit=_CHUNK
        )
        try:
            async with asyncio.TaskGroup() as pumps:
                for source, sink in ((reader, far_writer), (far_reader, writer)):
                    held = _Held(_HELD)
                    pumps.create_task(_take(source, held))
                    pumps.create_task(self._give(held, sink))
        except BaseException:
            _reset(far_writer)
            raise
        far_writer.close()

    async def _give(self, held: _Held, sink: asyncio.StreamWriter) -> None:
        sink.transport.set_write_buffer_limits(0)  # what is written is gone: no stall can hold it
        while True:
            came, chunk = await held.get()
            await self._due(came)
            if chunk is None:
                raise ConnectionResetError
            if not chunk:
                break
            sink.write(chunk)
            await sink.drain()
        sink.write_eof()

    async def _due(self, came: float) -> None:
        """Wait until what came then may go on, whatever is switched meanwhile."""
        now = asyncio.get_running_loop().time
        while (left := came + self._delay - now()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if left < math.inf else None):
                    await self._switched.wait()


async def _take(source: asyncio.StreamReader, held: _Held) -> None:
    """Hold what comes, its end or a reset too: these wait their turn like all the rest."""
    now = asyncio.get_running_loop().time
    chunk: bytes | None = b" "
    while chunk:
        try:
            chunk = await source.read(_CHUNK)
        except OSError:
            chunk = None
        await held.put((now(), chunk))


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, in a way the other side takes for an error."""
    with contextlib.suppress(OSError):  # it is closed already
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
