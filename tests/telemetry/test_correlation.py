"""The id of a request goes where its calls go: into their errors and out with their requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import pytest

from lightrag_resilience import CallRejected, Guards, Policy, RateLimitedError, RetryPolicy
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.telemetry.correlation import correlated
from support.wires import answers, wire

pytestmark = pytest.mark.anyio

ONCE = Policy(retry=RetryPolicy(attempts=1))
NOTE = "Request id: r-1"


async def fail() -> None:
    raise ConnectionRefusedError


@pytest.fixture
def guards() -> Guards:
    return Guards(settings=load_settings({}))


@pytest.fixture
def guard(guards: Guards) -> Guard:
    return guards.get("llm.openai", ONCE)


def notes(error: BaseException) -> list[str]:
    return [note for note in getattr(error, "__notes__", ()) if note.startswith("Request id")]


async def test_an_error_that_leaves_a_guard_has_the_id_in_a_note_once(
    guards: Guards, guard: Guard
) -> None:
    async def through_another() -> None:
        await guards.get("http.host", ONCE).call(fail)

    with correlated("r-1"), pytest.raises(ConnectionRefusedError) as raised:
        await guard.call(through_another)
    assert notes(raised.value) == [NOTE]
    with pytest.raises(ConnectionRefusedError) as without:
        await guard.call(fail)
    assert notes(without.value) == []


async def test_errors_of_retries_rejections_blocks_and_streams_have_the_id(
    guards: Guards, guard: Guard
) -> None:
    async def stream() -> AsyncIterator[int]:
        yield 1
        raise ConnectionResetError

    async def refuse() -> None:
        raise RateLimitedError("llm.openai")

    with correlated("r-1"):
        with pytest.raises(ConnectionRefusedError) as of_block:
            async with guard:
                await fail()
        opened: Any = await guard.call(stream)
        with pytest.raises(ConnectionResetError) as of_stream:
            async for _ in opened:
                pass
        with pytest.raises(CallRejected) as of_refusal:
            await guard.call(refuse)
        twice = Policy(retry=RetryPolicy(attempts=2, initial_backoff=0.001, max_backoff=0.001))
        with pytest.raises(ConnectionRefusedError) as of_retry:
            await guards.get("llm.twice", twice).call(fail)
    for raised in (of_block, of_stream, of_refusal, of_retry):
        assert notes(raised.value) == [NOTE]


async def test_a_cancellation_gets_no_note(guard: Guard) -> None:
    async def wait() -> None:
        async with guard:
            await asyncio.Event().wait()

    with correlated("r-1"):
        task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert notes(raised.value) == []


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_the_transport_adds_the_id_to_requests_without_one(library: Any) -> None:
    seen: list[str | None] = []

    async def answer(request: Any) -> Any:
        seen.append(request.headers.get("x-request-id"))
        return library.Response(200)

    async with wire(library, answers(library, answer)) as client:
        await client.get("http://provider.test/")
        with correlated("r-1"):
            await client.get("http://provider.test/")
            await client.get("http://provider.test/", headers={"X-Request-ID": "own"})
    assert seen == [None, "r-1", "own"]
