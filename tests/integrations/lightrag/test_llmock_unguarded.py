"""Clients without a guard against llmock: its verdicts do find faults.

Of a slow answer it says nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("lightrag")
pytest.importorskip("anthropic")
pytest.importorskip("llmock")

from llmock.pytest_plugin import LLMock

from support.llmock_clients import (
    ANSWERING,
    EMBEDDING,
    FOR_GOOD,
    PASSING,
    STREAMING,
    TEXT,
    Client,
    asking,
    of,
    speaking,
    text_of,
)

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag, pytest.mark.once, pytest.mark.no_cover]


@pytest.fixture
def provider(llmock: LLMock) -> LLMock:
    return speaking(llmock)


async def once(client: Client, llmock: LLMock) -> Any:
    """What an application without a guard gets; an error is all it notices."""
    async with asking(client, llmock) as ask:
        try:
            answer = await ask()
            return text_of([piece async for piece in answer]) if client in STREAMING else answer
        except Exception as error:  # noqa: BLE001 - it gives up
            return error


async def at_once_again(client: Client, llmock: LLMock, times: int, pause: float = 0.0) -> None:
    """A loop as it is often written: any error, always the same pause."""
    for _ in range(times):
        if not isinstance(await once(client, llmock), Exception):
            return
        await asyncio.sleep(pause)


async def found_in(llmock: LLMock) -> set[str]:
    return {finding.code for finding in (await asyncio.to_thread(llmock.verdict)).findings}


@of([*ANSWERING[:2], EMBEDDING[0], *STREAMING[:2]])
@pytest.mark.parametrize("status", PASSING)
async def test_without_a_guard_an_error_ends_the_call(
    client: Client, status: int, provider: LLMock
) -> None:
    provider.fail(status)
    assert isinstance(await once(client, provider), Exception)
    assert await found_in(provider) == {"gave_up"}


@of(STREAMING)
@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("disconnect", "gave_up"),
        ("truncate", "truncated_stream_accepted"),
        ("corrupt", "malformed_chunk_ignored"),
    ],
)
@pytest.mark.parametrize("after", [0, 1, 4])
async def test_without_a_guard_a_broken_stream_ends_the_call_or_looks_complete(
    client: Client, kind: str, found: str, after: int, provider: LLMock
) -> None:
    getattr(provider, kind)(after_chunks=after)
    assert await once(client, provider) != TEXT
    assert await found_in(provider) == {found}


@of(STREAMING)
async def test_without_a_guard_a_stall_blocks_the_caller(client: Client, provider: LLMock) -> None:
    provider.stall(after_chunks=4, seconds=1.1)
    assert await once(client, provider) == TEXT
    assert await found_in(provider) == {"no_read_timeout"}


@of(ANSWERING[:2])
@pytest.mark.parametrize(
    ("faults", "pause", "found"),
    [
        ((429, 2), 0.0, "retry_after_ignored"),
        ((500, 3), 0.2, "no_backoff"),
        ((500, 4), 0.0, "no_backoff"),
        ((500, 12), 0.0, "retry_storm"),
        *(((status, 2), 0.0, "retried_non_retryable") for status in FOR_GOOD),
    ],
)
async def test_a_naive_retry_loop_fails_the_checks(
    client: Client, faults: tuple[int, int], pause: float, found: str, provider: LLMock
) -> None:
    status, times = faults
    for _ in range(20):  # on a busy machine a pause may look as if it grew
        provider.reset().fail(status, times=times)
        await at_once_again(client, provider, times, pause)
        if found in await found_in(provider):
            return
    pytest.fail(f"never found: {found}")


@of(ANSWERING[:2])
async def test_a_naive_retry_loop_exceeds_a_quota(client: Client, provider: LLMock) -> None:
    provider.limits(rpm=2)
    for _ in range(2):
        await at_once_again(client, provider, 2)
    await at_once_again(client, provider, 2)
    assert "retry_after_ignored" in await found_in(provider)
