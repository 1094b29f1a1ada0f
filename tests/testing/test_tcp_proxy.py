"""The network that fails on command, with both ends in the test."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
from redis import asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lightrag_resilience.testing.redis_server import RedisServer
from lightrag_resilience.testing.tcp_proxy import TcpProxy
from support.ports import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error")]

PATIENCE = 30.0  # seconds
SILENCE = 0.1  # seconds in which nothing may come
LONG = 1000.0  # seconds that no test waits
MIB = 1024 * 1024


@dataclass(frozen=True)
class End:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def says(self, words: bytes) -> None:
        self.writer.write(words)

    async def receives(self, words: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            assert await self.reader.readexactly(len(words)) == words

    async def receives_the_end(self) -> None:
        async with asyncio.timeout(PATIENCE):
            assert await self.reader.read() == b""

    async def receives_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENCE):
                await self.reader.read(1)

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(PATIENCE):
                await self.reader.read()

    def resets(self) -> None:
        connection: socket.socket = self.writer.get_extra_info("socket")
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


@dataclass
class Line:
    """A server of our own, and a way to it."""

    port: int = 0
    arrived: asyncio.Queue[End] = field(default_factory=asyncio.Queue)
    ends: list[End] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._arrive, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for end in self.ends:
            end.writer.transport.abort()
        await asyncio.sleep(0)
        await self._server.wait_closed()

    def _arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends.append(End(reader, writer))
        self.arrived.put_nowait(self.ends[-1])

    async def dial(self, proxy: TcpProxy) -> End:
        """The near end of a new connection."""
        async with asyncio.timeout(PATIENCE):
            self.ends.append(End(*await asyncio.open_connection("127.0.0.1", proxy.port)))
            return self.ends[-1]

    async def connect(self, proxy: TcpProxy) -> tuple[End, End]:
        """The near end and the far end of a new connection."""
        near = await self.dial(proxy)
        near.says(b"hello")
        async with asyncio.timeout(PATIENCE):
            far = await self.arrived.get()
        await far.receives(b"hello")
        return near, far


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    async with Line() as line:
        yield line


@pytest.fixture
async def proxy(line: Line) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(line.port) as proxy:
        yield proxy


# ---------------------------------------------------------------------- as a good network


async def test_bytes_pass_both_ways(line: Line, proxy: TcpProxy) -> None:
    near, far = await line.connect(proxy)
    near.says(b"question")
    await far.receives(b"question")
    far.says(b"answer")
    await near.receives(b"answer")


async def test_many_bytes_pass_both_ways_at_once(line: Line, proxy: TcpProxy) -> None:
    near, far = await line.connect(proxy)
    question, answer = os.urandom(9 * MIB), os.urandom(9 * MIB)
    near.says(question)
    far.says(answer)
    await asyncio.gather(far.receives(question), near.receives(answer))


async def test_connections_are_apart(line: Line, proxy: TcpProxy) -> None:
    pairs = [await line.connect(proxy) for _ in range(5)]
    for number, (near, _) in enumerate(pairs):
        near.says(b"%d" % number)
    for number, (_, far) in enumerate(pairs):
        await far.receives(b"%d" % number)


async def test_a_half_closed_end_still_receives(line: Line, proxy: TcpProxy) -> None:
    for first, second in [(0, 1), (1, 0)]:
        ends = await line.connect(proxy)
        ends[first].says(b"question")
        ends[first].writer.write_eof()
        await ends[second].receives(b"question")
        await ends[second].receives_the_end()
        ends[second].says(b"answer")
        await ends[first].receives(b"answer")
        ends[second].writer.close()
        await ends[first].receives_the_end()


async def test_the_loss_of_one_end_reaches_the_other(line: Line, proxy: TcpProxy) -> None:
    for first, second in [(0, 1), (1, 0)]:
        ends = await line.connect(proxy)
        ends[first].writer.close()
        await ends[second].receives_the_end()
        ends = await line.connect(proxy)
        ends[first].resets()
        await ends[second].is_reset()


async def test_a_server_that_is_not_there_means_a_reset(line: Line, proxy: TcpProxy) -> None:
    async with TcpProxy(free_port()) as nowhere:
        await (await line.dial(nowhere)).is_reset()


@pytest.mark.parametrize("stalled", [False, True])
async def test_a_sender_has_to_wait_for_the_other_end(
    line: Line,
    proxy: TcpProxy,
    stalled: bool,  # noqa: FBT001
) -> None:
    near, far = await line.connect(proxy)
    if stalled:
        proxy.stall()
    sent = await sent_until_it_has_to_wait(near)
    assert sent <= 64 * MIB
    proxy.pass_on()
    await far.receives(bytes(sent))


async def sent_until_it_has_to_wait(end: End) -> int:
    """How many bytes an end could send, up to a bound."""
    sent = 0
    while sent <= 64 * MIB:
        end.says(bytes(MIB))
        sent += MIB
        try:
            async with asyncio.timeout(0.3):
                await end.writer.drain()
        except TimeoutError:
            break
    return sent


# ---------------------------------------------------------------------- as a bad one


async def test_a_stall_holds_what_open_connections_say(line: Line, proxy: TcpProxy) -> None:
    near, far = await line.connect(proxy)
    proxy.stall()
    near.says(b"question")
    far.says(b"answer")
    await far.receives_nothing()
    await near.receives_nothing()
    proxy.pass_on()
    await far.receives(b"question")
    await near.receives(b"answer")


async def test_a_stall_holds_new_connections(line: Line, proxy: TcpProxy) -> None:
    proxy.stall()
    near = await line.dial(proxy)
    near.says(b"question")
    await near.receives_nothing()
    assert line.arrived.empty()
    proxy.delay(0.0)
    far = await line.arrived.get()
    await far.receives(b"question")


@pytest.mark.parametrize("end", [0, 1])
async def test_a_stall_holds_an_end_and_a_reset_too(line: Line, proxy: TcpProxy, end: int) -> None:
    closing, cut = await line.connect(proxy), await line.connect(proxy)
    proxy.stall()
    closing[end].writer.close()
    cut[end].resets()
    await closing[1 - end].receives_nothing()
    await cut[1 - end].receives_nothing()
    proxy.pass_on()
    await closing[1 - end].receives_the_end()
    await cut[1 - end].is_reset()


async def test_a_delay_holds_every_chunk_as_long_and_keeps_the_order(
    line: Line, proxy: TcpProxy
) -> None:
    near, far = await line.connect(proxy)
    proxy.delay(0.1)
    for words in (b"one", b"two", b"three"):
        said = time.monotonic()
        near.says(words)
        await asyncio.sleep(0.02)
    await far.receives(b"onetwothree")
    assert time.monotonic() - said >= 0.1
    said = time.monotonic()
    far.says(b"answer")
    await near.receives(b"answer")
    assert time.monotonic() - said >= 0.1


async def test_delays_run_at_the_same_time(line: Line, proxy: TcpProxy) -> None:
    near, far = await line.connect(proxy)
    proxy.delay(0.5)
    began = time.monotonic()
    for _ in range(40):
        near.says(b"word")
        await asyncio.sleep(0.005)
    await far.receives(b"word" * 40)
    assert time.monotonic() - began < 40 * 0.5


async def test_a_switch_holds_for_what_is_held(line: Line, proxy: TcpProxy) -> None:
    near, far = await line.connect(proxy)
    proxy.delay(LONG)
    near.says(b"one")
    await far.receives_nothing()
    proxy.stall()
    near.says(b"two")
    await far.receives_nothing()
    proxy.delay(0.01)
    await far.receives(b"onetwo")


async def test_a_drop_resets_both_ends(line: Line, proxy: TcpProxy) -> None:
    near, far = await line.connect(proxy)
    proxy.drop()
    await near.is_reset()
    await far.is_reset()


@pytest.mark.parametrize("dialled_first", [False, True])
async def test_a_drop_resets_connections_on_their_way(
    line: Line,
    proxy: TcpProxy,
    dialled_first: bool,  # noqa: FBT001
) -> None:
    if dialled_first:
        proxy.stall()
        near = await line.dial(proxy)
        near.says(b"question")
        await near.receives_nothing()
        proxy.drop()
    else:
        proxy.drop()
        near = await line.dial(proxy)
    await near.is_reset()
    assert line.arrived.empty()


async def test_what_was_held_is_lost_with_a_drop(line: Line, proxy: TcpProxy) -> None:
    near, far = await line.connect(proxy)
    proxy.stall()
    near.says(b"question")
    await far.receives_nothing()
    proxy.drop()
    await far.is_reset()


async def test_new_connections_pass_after_a_drop(line: Line, proxy: TcpProxy) -> None:
    near, _ = await line.connect(proxy)
    proxy.drop()
    proxy.pass_on()
    await near.is_reset()
    near, far = await line.connect(proxy)
    near.says(b"question")
    await far.receives(b"question")


# ---------------------------------------------------------------------- begin and end


async def test_the_end_resets_connections_and_refuses_new_ones(line: Line) -> None:
    async with TcpProxy(line.port) as proxy:
        near, far = await line.connect(proxy)
    await near.is_reset()
    await far.is_reset()
    with pytest.raises(ConnectionRefusedError):
        await line.dial(proxy)


async def test_a_proxy_begins_again_on_its_port(line: Line) -> None:
    proxy = TcpProxy(line.port)
    assert proxy.port == 0
    async with proxy:
        port = proxy.port
        await line.connect(proxy)
    async with proxy:
        assert proxy.port == port
        near, far = await line.connect(proxy)
        near.says(b"question")
        await far.receives(b"question")


async def test_a_switch_outlasts_the_end(line: Line) -> None:
    proxy = TcpProxy(line.port)
    proxy.drop()
    for _ in range(2):
        async with proxy:
            await (await line.dial(proxy)).is_reset()


async def test_leaving_what_was_never_entered_is_harmless() -> None:
    await TcpProxy(1).__aexit__()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_is_left_open() -> None:
    async def use_every_state() -> None:
        async with Line() as line:
            async with TcpProxy(line.port) as proxy:
                await line.connect(proxy)
                closed, half = await line.connect(proxy), await line.connect(proxy)
                closed[0].writer.close()
                half[0].writer.write_eof()
                await half[1].receives_the_end()
                near, _ = await line.connect(proxy)
                proxy.delay(LONG)
                near.says(bytes(MIB))
                proxy.stall()
                await (await line.dial(proxy)).receives_nothing()
                late = [asyncio.create_task(line.dial(proxy)) for _ in range(3)]
                await asyncio.sleep(0)
            assert not [
                task for task in asyncio.all_tasks() if "testing/tcp_proxy.py" in repr(task)
            ]
            await asyncio.gather(*late, return_exceptions=True)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    gc.collect()
    before = open_files()
    asyncio.run(use_every_state(), debug=True)
    gc.collect()
    deadline = time.monotonic() + 5  # a thread of another test may be connecting right now
    while open_files() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# ---------------------------------------------------------------------- with a real client


@asynccontextmanager
async def client_of(proxy: TcpProxy, *, wait: float) -> AsyncIterator[aioredis.Redis]:
    once = Retry(NoBackoff(), 0)
    async with aioredis.Redis.from_url(proxy.url, socket_timeout=wait, retry=once) as client:
        yield client


async def test_a_redis_client_meets_what_the_network_does() -> None:
    with RedisServer() as server:
        async with TcpProxy(server.port) as proxy:
            async with client_of(proxy, wait=PATIENCE) as client:
                value = os.urandom(MIB)
                await client.set("key", value)
                assert await client.get("key") == value
                proxy.drop()
                with pytest.raises(exceptions.ConnectionError):
                    await client.ping()
                proxy.pass_on()
                assert await client.get("key") == value
            async with client_of(proxy, wait=SILENCE) as client:
                proxy.stall()
                with pytest.raises(exceptions.TimeoutError):
                    await client.ping()
            proxy.pass_on()
            async with client_of(proxy, wait=PATIENCE) as client:
                assert await client.ping()
