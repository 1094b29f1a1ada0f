"""Bodies of answers, in virtual time: when the verdict falls, and what a close means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
)
from lightrag_resilience.testing import VirtualTimeLoop
from support.transports import free_permits, kinds_published, now, policy, the_guard, verdict
from support.wires import URL, Answer, answers, new_guards, wire

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- bodies


async def test_the_outcome_is_recorded_at_the_end_of_the_body(library: Any) -> None:
    registry = new_guards()
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    answer = Answer(200, b"one", 3.0, b"two")
    async with (
        wire(library, answers(library, answer), **options) as client,
        client.stream("GET", URL) as response,
    ):
        guard = the_guard(registry)
        assert (verdict(guard), free_permits(guard)) == ((0, 0), 0)
        assert await response.aread() == b"onetwo"
        assert (verdict(guard), free_permits(guard)) == ((1, 0), 1)
    assert answer.closed == 1


async def test_a_body_that_fails_before_its_first_chunk_is_retried(library: Any) -> None:
    sent = [Answer(200, library.ReadError("cut")), Answer(200, b"fine")]
    async with wire(library, answers(library, *sent), policy=policy()) as client:
        assert (await client.get(URL)).content == b"fine"
    assert sent[0].closed == 1


async def test_a_truncated_body_is_a_failure_and_not_retried(library: Any) -> None:
    registry = new_guards()
    cut = library.RemoteProtocolError("incomplete")
    transport = answers(library, Answer(200, b"one", cut))
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    async with wire(library, transport, **options) as client:
        with pytest.raises(library.RemoteProtocolError):
            await client.get(URL)
    guard = the_guard(registry)
    assert (len(transport.at), verdict(guard), free_permits(guard)) == (1, (1, 1), 1)


async def test_a_truncated_error_body_is_a_failure_of_unknown_outcome(
    library: Any,
) -> None:
    registry = new_guards()
    kinds = kinds_published(registry)
    answer = Answer(500, b"one", library.ReadError("cut"))
    async with wire(library, answers(library, answer), registry=registry) as client:
        with pytest.raises(library.ReadError):
            await client.get(URL)
    assert (kinds, answer.closed) == (["unknown"] * 3, 3)


async def test_a_body_that_stalls_ends_as_a_timeout_of_the_library(library: Any) -> None:
    registry = new_guards()
    answer = Answer(200, b"one", 60.0, b"two")
    options: Any = {"policy": policy(attempt_timeout=5.0), "registry": registry}
    async with wire(library, answers(library, answer), **options) as client:
        with pytest.raises(library.ReadTimeout) as raised:
            await client.get(URL)
    assert isinstance(raised.value.__cause__, AttemptTimeoutError)
    assert (now(), answer.closed, verdict(the_guard(registry))) == (5.0, 1, (1, 1))


@pytest.mark.parametrize(
    ("chunks", "kind", "calls"),
    [
        ((b"data: 1\n\n", b"data: 2\n\n"), "text/event-stream", 0),
        ((b"data: 1\n\n", b"data: [DO", b"NE]\n\n", b"rest"), "text/event-stream", 1),
        ((b"data: 1\n\n", b"data: [DO", b"NE]\n\n", b"rest"), "text/plain", 0),
    ],
    ids=["unfinished", "at the end marker", "no events"],
)
async def test_a_stream_closed_early_records_an_outcome_only_after_its_end_marker(
    library: Any, chunks: Any, kind: str, calls: int
) -> None:
    registry = new_guards()
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    answer = Answer(200, *chunks, content_type=kind)
    async with (
        wire(library, answers(library, answer), **options) as client,
        client.stream("POST", URL) as response,
    ):
        body = response.aiter_raw()
        for _ in chunks[:3]:
            await anext(body)
        await response.stream.aclose()
        assert (answer.read, answer.ended) == (min(len(chunks), 3), 1)
    guard = the_guard(registry)
    assert (verdict(guard), free_permits(guard), answer.closed) == ((calls, 0), 1, 1)


async def test_a_stream_complete_in_its_first_chunk_is_a_success_unread(
    library: Any,
) -> None:
    registry = new_guards()
    answer = Answer(200, b"data: [DONE]\n\n", content_type="text/event-stream")
    async with (
        wire(library, answers(library, answer), registry=registry) as client,
        client.stream("POST", URL),
    ):
        pass
    assert verdict(the_guard(registry)) == (1, 0)


async def test_a_second_reader_continues_where_the_first_stopped(library: Any) -> None:
    registry = new_guards()
    answer = Answer(200, b"one", b"two", b"three")
    async with (
        wire(library, answers(library, answer), registry=registry) as client,
        client.stream("GET", URL) as response,
    ):
        assert await anext(response.aiter_raw()) == b"one"
        assert [chunk async for chunk in response.stream] == [b"two", b"three"]
    assert verdict(the_guard(registry)) == (1, 0)


async def test_a_response_closed_by_another_task_is_settled_once(library: Any) -> None:
    registry = new_guards()
    gone = library.ReadError("closed")
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    answer = Answer(200, b"one", 5.0, gone)
    async with (
        wire(library, answers(library, answer), **options) as client,
        client.stream("GET", URL) as response,
    ):
        reading = asyncio.ensure_future(response.aread())
        await asyncio.sleep(1.0)
        await response.stream.aclose()
        with pytest.raises(library.ReadError):
            await reading
    guard = the_guard(registry)
    assert (verdict(guard), free_permits(guard), answer.closed) == ((0, 0), 1, 1)


END_OF_EVENTS = b"data: [DONE]\n\n"


async def test_a_response_can_be_closed_while_another_task_waits_for_its_last_byte(
    library: Any,
) -> None:
    registry = new_guards()
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    answer = Answer(200, b"data: 1\n\n", END_OF_EVENTS, 60.0, content_type="text/event-stream")
    async with (
        wire(library, answers(library, answer), **options) as client,
        client.stream("GET", URL) as response,
    ):
        reading = asyncio.ensure_future(response.aread())
        await asyncio.sleep(1.0)
        await response.stream.aclose()
        guard = the_guard(registry)
        assert (verdict(guard), free_permits(guard), answer.closed) == ((1, 0), 1, 1)
        reading.cancel()
        await asyncio.wait([reading])


@pytest.mark.parametrize("attempt", range(5))  # generators are closed in no certain order
def test_a_response_left_open_at_its_end_marker_is_a_success_when_the_loop_ends(
    library: Any, attempt: int
) -> None:
    answer = Answer(200, b"data: 1\n\n", END_OF_EVENTS, 60.0, content_type="text/event-stream")
    left, guards = [], []
    del attempt

    async def leave() -> None:
        registry = new_guards()
        client = wire(library, answers(library, answer), registry=registry)

        async def pieces() -> AsyncIterator[bytes]:
            async with client.stream("GET", URL) as response:
                async for chunk in response.aiter_raw():
                    yield chunk

        body = pieces()
        assert [await anext(body), await anext(body)] == [b"data: 1\n\n", END_OF_EVENTS]
        left.append(body)
        guards.append(the_guard(registry))

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(leave())
    assert (verdict(guards[0]), answer.closed) == ((1, 0), 1)


async def test_closing_twice_closes_once_for_any_iterator_of_chunks(library: Any) -> None:
    class Chunks(library.AsyncByteStream):  # type: ignore[misc]
        closed = 0

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            return b"more"

        async def aclose(self) -> None:
            self.closed += 1

    stream = Chunks()
    transport = answers(library, library.Response(200, stream=stream))
    async with (
        wire(library, transport) as client,
        client.stream("GET", URL) as response,
    ):
        await response.stream.aclose()
    assert stream.closed == 1
