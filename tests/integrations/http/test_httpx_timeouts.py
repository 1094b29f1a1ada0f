"""Timeouts, deadlines and cancellation of the transport, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    DeadlineExceededError,
)
from support.transports import free_permits, now, policy, the_guard, verdict
from support.wires import URL, Answer, answers, new_guards, wire

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- time


async def stall(_: Any) -> Any:
    await asyncio.sleep(1000)


async def test_an_attempt_that_takes_too_long_is_a_timeout_of_the_library(library: Any) -> None:
    registry = new_guards()
    transport = answers(library, stall)
    limited = policy(attempt_timeout=5.0, attempts=2)
    async with wire(library, transport, policy=limited, registry=registry) as client:
        with pytest.raises(library.ReadTimeout) as raised:
            await client.get(URL)
    assert isinstance(raised.value.__cause__, AttemptTimeoutError)
    assert str(raised.value) == str(raised.value.__cause__)
    assert raised.value.request.url == URL
    assert (transport.at, now()) == ([0.0, 8.5], 13.5)
    assert verdict(the_guard(registry)) == (2, 2)


async def test_the_deadline_ends_the_request_and_limits_the_wire_timeouts(library: Any) -> None:
    registry = new_guards()
    asked = library.Timeout(connect=2.0, read=None, write=9.0, pool=30.0)
    transport = answers(library, Answer(503), stall)
    limited = policy(attempt_timeout=20.0, total_timeout=8.0)
    options: Any = {"policy": limited, "registry": registry, "timeout": asked}
    async with wire(library, transport, **options) as client:
        request = client.build_request("GET", URL)
        with pytest.raises(library.ReadTimeout) as raised:
            await client.send(request)
    assert isinstance(raised.value.__cause__, DeadlineExceededError)
    assert now() == 8.0
    first, second = transport.limits
    assert (first["connect"], first["write"], first["pool"]) == (2.0, 8.0, 8.0)
    assert second == {"connect": 2.0, "read": 7.0, "write": 7.0, "pool": 7.0}
    assert request.extensions["timeout"] == asked.as_dict()
    assert verdict(the_guard(registry)) == (1, 1)


async def test_after_the_headers_reads_have_the_clients_read_timeout(library: Any) -> None:
    transport = answers(library, Answer(200, b"one", 50.0, b"two"))
    limited = policy(attempt_timeout=60.0, total_timeout=8.0)
    async with wire(library, transport, policy=limited, timeout=100.0) as client:
        assert (await client.get(URL)).content == b"onetwo"
    assert transport.limits[0]["read"] == 100.0
    assert transport.limits[0]["connect"] == 8.0


async def test_without_guard_timeouts_the_clients_timeouts_hold(library: Any) -> None:
    late = library.ReadTimeout("late")
    transport = answers(library, Answer(), late)
    endless = policy(attempt_timeout=None, total_timeout=None)
    async with wire(library, transport, policy=endless, timeout=None) as client:
        await client.get(URL)
        with pytest.raises(library.ReadTimeout) as raised:
            await client.get(URL)
    assert raised.value is late
    assert set(transport.limits[0].values()) == {None}


@pytest.mark.parametrize("seconds", [3.0, 4.0])
async def test_a_wire_timeout_after_the_guards_deadline_is_the_guards_timeout(
    library: Any, seconds: float
) -> None:
    """Both end at the same moment: whichever is first, a deadline is no failure of the host."""

    async def time_out(_: Any) -> Any:
        loop: Any = asyncio.get_running_loop()
        loop._selector_of_time.now += seconds  # at once: the guard's timer has no turn before
        return library.ConnectTimeout("late")

    registry = new_guards()
    limited = policy(attempt_timeout=20.0, total_timeout=5.0, attempts=2)
    transport = answers(library, Answer(503), time_out)
    async with wire(library, transport, policy=limited, registry=registry) as client:
        with pytest.raises(library.TimeoutException) as raised:
            await client.get(URL)
    is_ours = seconds == 4.0
    assert isinstance(raised.value.__cause__, DeadlineExceededError) == is_ours
    assert isinstance(raised.value, library.ConnectTimeout) != is_ours
    assert verdict(the_guard(registry)) == ((1, 1) if is_ours else (2, 2))


@pytest.mark.parametrize("moment", [10.0, 40.0], ids=["in the wait", "in the retry"])
async def test_a_cancelled_request_records_no_outcome_and_holds_nothing(
    library: Any, moment: float
) -> None:
    registry = new_guards()
    failed = Answer(503, b"x" * 70_000, b"more", retry_after="30")
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    async with wire(library, answers(library, failed, stall), **options) as client:
        task = asyncio.ensure_future(client.get(URL))
        await asyncio.sleep(moment)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    guard = the_guard(registry)
    assert (verdict(guard), free_permits(guard), failed.closed) == ((1, 1), 1, 1)


async def test_a_close_that_fails_does_not_hide_a_cancellation(library: Any) -> None:
    class Broken(library.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"x" * 70_000

        async def aclose(self) -> None:
            raise OSError("gone already")

    broken = library.Response(503, stream=Broken(), headers={"retry-after": "30"})
    async with wire(library, answers(library, broken), policy=policy()) as client:
        task = asyncio.ensure_future(client.get(URL))
        await asyncio.sleep(10.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
