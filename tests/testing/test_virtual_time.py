"""Virtual time: waiting takes none, timers keep their order, and sockets still work."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from lightrag_resilience.testing.virtual_time import VirtualTimeLoop, _JumpingSelector

R = TypeVar("R")
HOUR = 3600.0
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def now() -> float:
    return asyncio.get_running_loop().time()


async def taking(awaitable: Awaitable[R]) -> tuple[R, float]:
    """A result, and how many seconds passed on the loop until it was there."""
    began = now()
    result = await awaitable
    return result, now() - began


async def after(seconds: float, result: R) -> R:
    await asyncio.sleep(seconds)
    return result


async def test_the_plugin_runs_tests_on_a_virtual_loop() -> None:
    assert type(asyncio.get_running_loop()) is VirtualTimeLoop


def test_time_begins_at_zero() -> None:
    loop = VirtualTimeLoop()
    try:
        assert loop.time() == 0.0
    finally:
        loop.close()


@pytest.mark.parametrize("hours", [1, 24, 100 * 24])
async def test_sleeping_for_hours_takes_hours_of_the_loop(hours: int) -> None:
    _, passed = await taking(asyncio.sleep(hours * HOUR))
    assert passed == pytest.approx(hours * HOUR)


async def test_time_stands_still_while_code_runs() -> None:
    began = now()
    for _ in range(50):
        await asyncio.sleep(0)
    assert now() == began


async def test_many_waits_at_once_take_as_long_as_the_longest() -> None:
    results, passed = await taking(
        asyncio.gather(*(after(hours * HOUR, hours) for hours in (3, 1, 2)))
    )
    assert results == [3, 1, 2]
    assert passed == pytest.approx(3 * HOUR)


async def test_timers_come_in_the_order_of_their_time() -> None:
    fired: list[tuple[str, float]] = []
    began = now()

    def note(name: str) -> None:
        fired.append((name, now()))

    for name, delay in (("last", 3.0), ("first", 1.0), ("second", 1.5), ("third", 1.5)):
        asyncio.get_running_loop().call_later(delay, note, name)
    await asyncio.sleep(4.0)
    assert [name for name, _ in fired] == ["first", "second", "third", "last"]
    assert [at - began for _, at in fired] == pytest.approx([1.0, 1.5, 1.5, 3.0])


async def test_a_cancelled_timer_is_not_waited_for() -> None:
    handle = asyncio.get_running_loop().call_later(HOUR, pytest.fail)
    handle.cancel()
    _, passed = await taking(asyncio.sleep(1.0))
    assert passed == pytest.approx(1.0)


async def test_a_timeout_is_due_at_its_time() -> None:
    async def wait() -> str:
        try:
            async with asyncio.timeout(HOUR):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "went on"

    result, passed = await taking(wait())
    assert result == "timed out"
    assert passed == pytest.approx(HOUR)


async def test_a_wait_too_short_to_change_the_time_ends_all_the_same() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    rounds = 0
    while loop.time() == began:
        rounds += 1
        assert rounds < 10_000
        await asyncio.sleep(1e-300)
    assert loop.time() - began < 1e-6


def selecting_at(seconds: float) -> float:
    """How much time many idle rounds take that long after the start."""
    selector = _JumpingSelector()
    try:
        selector.now = seconds
        for _ in range(1000):
            assert selector.select(0) == []
        return selector.now - seconds
    finally:
        selector.close()


def test_many_idle_rounds_move_the_time_on_a_little() -> None:
    assert 0.0 < selecting_at(0.0) < 1e-5
    assert 0.0 < selecting_at(1e6) < 1e-5


def test_many_idle_rounds_move_the_time_on_at_any_time() -> None:
    assert selecting_at(1e8) > 0.0


async def serve(handle: Callable[[bytes], Awaitable[bytes]]) -> asyncio.Server:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await handle(await reader.readline()))
        await writer.drain()
        writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", 0)


async def ask(server: asyncio.Server, line: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(line)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def echo(line: bytes) -> bytes:
    return line.upper()


async def echo_after_an_hour(line: bytes) -> bytes:
    return await after(HOUR, line.upper())


@pytest.mark.parametrize(("handle", "seconds"), [(echo, 0.0), (echo_after_an_hour, HOUR)])
async def test_sockets_work_and_take_only_virtual_time(
    handle: Callable[[bytes], Awaitable[bytes]], seconds: float
) -> None:
    async with await serve(handle) as server:
        answer, passed = await taking(ask(server, b"hello\n"))
    assert answer == b"HELLO\n"
    assert passed == pytest.approx(seconds, abs=1e-3)


async def test_time_does_not_jump_while_something_can_be_read() -> None:
    loop = asyncio.get_running_loop()
    read, began = loop.create_future(), loop.time()
    near, far = socket.socketpair()
    with near, far:
        timer = loop.call_later(HOUR, read.set_exception, TimeoutError("time jumped"))
        far.send(b"x")
        loop.add_reader(near, lambda: read.set_result(loop.time()))
        try:
            assert await read == began
        finally:
            loop.remove_reader(near)
            timer.cancel()


async def test_a_thread_can_wake_a_loop_that_waits_for_nothing_else() -> None:
    assert await asyncio.get_running_loop().run_in_executor(None, lambda: "woken") == "woken"


def test_a_thread_may_take_its_time_to_end() -> None:
    released = threading.Event()

    async def leave_a_thread() -> None:
        asyncio.get_running_loop().run_in_executor(None, released.wait, 10)
        asyncio.get_running_loop().call_soon(threading.Timer(0.05, released.set).start)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(leave_a_thread())
    assert released.is_set()
