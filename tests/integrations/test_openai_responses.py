"""Streams of OpenAI's Responses API, and of servers that give up: the real SDK, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from lightrag_resilience import Guard, Policy, RetryPolicy, TruncatedStreamError, collected
from lightrag_resilience.events import AttemptFailed
from lightrag_resilience.integrations.sdks import detect_truncated_streams

pytestmark = pytest.mark.anyio


class Provider:
    """Streams its next run of events to each request, and closes as if all had been said."""

    def __init__(self, *runs: list[dict[str, Any]]) -> None:
        self.runs = [*runs]
        self.calls = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if b"content-length" in line)
        await reader.readexactly(int(length.split(b":")[1]))
        run = self.runs[min(self.calls, len(self.runs) - 1)]
        self.calls += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Connection: close\r\n\r\n")
        for event in run:
            name = f"event: {event['type']}\n" if "type" in event else ""
            writer.write(f"{name}data: {json.dumps(event)}\n\n".encode())
        await writer.drain()
        writer.close()


@pytest.fixture
async def served() -> AsyncIterator[tuple[Provider, openai.AsyncOpenAI]]:
    provider = Provider()
    server = await asyncio.start_server(provider.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        openai.AsyncOpenAI(
            api_key="simulated", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0
        ) as client,
    ):
        yield provider, client


def guard() -> Guard:
    quick = RetryPolicy(attempts=3, initial_backoff=0.01, max_backoff=0.02)
    return Guard("llm.openai", Policy.llm(retry=quick))


def failures(guard: Guard) -> list[str]:
    found: list[str] = []
    guard.events.subscribe(lambda e: found.append(e.kind) if isinstance(e, AttemptFailed) else None)
    return found


def event(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "sequence_number": 1, **more}


def response(kind: str, **more: Any) -> dict[str, Any]:
    status = kind.rpartition(".")[2]
    return event(kind, response={"id": "a", "object": "response", "status": status, **more})


CREATED = response("response.created")
WORDS = event("response.output_text.delta", delta="half", item_id="a", output_index=0)
COMPLETED = response("response.completed")
INCOMPLETE = response("response.incomplete", incomplete_details={"reason": "max_output_tokens"})
BROKEN = response("response.failed", error={"code": "server_error", "message": "a text"})
REFUSED = response("response.failed", error={"code": "invalid_prompt", "message": "a text"})
LIMITED = event("error", code="rate_limit_exceeded", message="a text", param=None)

ASKED: Any = {"model": "simulated", "input": "Say something.", "stream": True}


@pytest.mark.parametrize("last", [COMPLETED, INCOMPLETE])
async def test_a_response_that_is_complete_or_at_its_limit_is_a_success(
    served: Any, last: dict[str, Any]
) -> None:
    provider, client = served
    provider.runs = [[CREATED, WORDS, last]]
    made = guard()
    stream = await made.call(client.responses.create, **ASKED)
    assert [each.type async for each in stream][-1] == last["type"]
    assert (made.breaker.snapshot().calls, made.breaker.snapshot().failed) == (1, 0)


@pytest.mark.parametrize(
    ("run", "kind", "said"),
    [
        ([CREATED, WORDS], "unknown", "cut off before its finish marker"),
        ([CREATED, WORDS, BROKEN], "transient", "cut off by its server, which gave up: server_er"),
        ([CREATED, REFUSED], "fatal", "cut off by its server, which gave up: invalid_prompt"),
        ([CREATED, WORDS, LIMITED], "throttled", "which gave up: rate_limit_exceeded"),
    ],
)
async def test_a_response_that_is_cut_off_or_failed_is_a_failure_of_its_own_class(
    served: Any, run: list[dict[str, Any]], kind: str, said: str
) -> None:
    provider, client = served
    provider.runs = [run]
    made = guard()
    kinds = failures(made)
    stream = await made.call(client.responses.create, **ASKED)
    assert [(await anext(stream)).type for _ in run] == [each["type"] for each in run]
    with pytest.raises(TruncatedStreamError, match=said) as failed:
        await anext(stream)
    assert (kinds, "a text" in str(failed.value)) == ([kind], False)


async def test_a_reader_that_leaves_at_the_failure_has_seen_a_failure(served: Any) -> None:
    provider, client = served
    provider.runs = [[CREATED, WORDS, BROKEN]]
    made = guard()
    kinds = failures(made)
    async with await made.call(client.responses.create, **ASKED) as stream:
        async for each in stream:
            if each.type == "response.failed":
                break
    assert kinds == ["transient"]


async def test_a_response_that_failed_is_asked_for_again_as_a_whole(served: Any) -> None:
    provider, client = served
    provider.runs = [[CREATED, WORDS, BROKEN], [CREATED, WORDS], [CREATED, WORDS, COMPLETED]]
    events = await guard().call(collected(client.responses.create), **ASKED)
    assert ([each.type for each in events][-1], provider.calls) == ("response.completed", 3)


def chunk(reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": "half"}, "finish_reason": reason}
    return {"id": "a", "created": 0, "model": "m", "choices": [choice]}


@pytest.mark.parametrize("reason", ["insufficient_system_resource", "network_error", "error"])
async def test_a_function_that_makes_text_of_chunks_raises_where_its_server_gave_up(
    served: Any, reason: str
) -> None:
    provider, client = served
    provider.runs = [[chunk("null"), chunk(reason)]]
    made = guard()
    kinds = failures(made)

    async def text() -> AsyncIterator[str]:
        messages: Any = [{"role": "user", "content": "Say something."}]
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        async for each in stream:
            yield each.choices[0].delta.content

    take_back = detect_truncated_streams(openai)
    try:
        with pytest.raises(TruncatedStreamError, match=reason):
            _ = [each async for each in await made.call(text)]
    finally:
        take_back()
    assert kinds == ["unknown"]
