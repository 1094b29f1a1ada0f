"""Guarded clients against llmock, a server that fails on purpose and judges its clients.

Every test ends with the server's own verdict, strict: warnings fail it too. What it says of the
same clients with no guard is in `test_llmock_unguarded.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("lightrag")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("llmock")

import httpx2  # noqa: E402
import openai  # noqa: E402
from llmock.chaos import ChaosSettings, StreamChaos  # noqa: E402
from llmock.pytest_plugin import LLMock  # noqa: E402
from llmock.testing import LLMockServer  # noqa: E402

from lightrag_resilience import (  # noqa: E402
    AttemptTimeoutError,
    BreakerPolicy,
    Guard,
    Guards,
    Policy,
    RetryPolicy,
    TimeoutPolicy,
    TruncatedStreamError,
    collected,
)
from lightrag_resilience.integrations.httpx2 import ResilientTransport  # noqa: E402
from lightrag_resilience.integrations.lightrag.inner_retries import (  # noqa: E402
    make_inner_retries_yield,
    restore_inner_retries,
)
from lightrag_resilience.integrations.sdks import detect_truncated_streams, disable_sdk_retries  # noqa: E402
from support.llmock_clients import (  # noqa: E402
    ANSWERING,
    EMBEDDING,
    FOR_GOOD,
    PASSING,
    STREAMING,
    TEXT,
    WITH_A_WAIT,
    Client,
    asking,
    break_next,
    of,
    say,
    sdk_of,
    speaking,
    text_of,
)

# Most of the time SDKs work: measured, it would double.
pytestmark = [pytest.mark.anyio, pytest.mark.lightrag, pytest.mark.no_cover]

BREAKS = ("disconnect", "truncate", "corrupt")
RETRY = RetryPolicy(attempts=4, initial_backoff=0.05)
# The server sees a wait from when it notices that the client left, with the time that asking
# takes: short ones may look alike, or not be seen.
REGULAR = RetryPolicy(attempts=4, initial_backoff=0.15, jitter="none")


@pytest.fixture
def provider(llmock: LLMock) -> LLMock:
    return speaking(llmock)


@pytest.fixture
def _as_protected() -> Iterator[None]:
    """What `protect` does for LightRAG's bindings."""
    take_back = [
        disable_sdk_retries(openai, anthropic),
        detect_truncated_streams(openai, anthropic),
    ]
    make_inner_retries_yield()
    yield
    restore_inner_retries()
    for undo in take_back:
        undo()


def guard(**changes: Any) -> Guard:
    # LightRAG makes a client for each call, which alone takes half a second on a busy machine.
    timeout = TimeoutPolicy(attempt=10.0, total=60.0, first_item=3.0, gap=1.0)
    return Guard("llm", Policy.llm(**({"timeout": timeout, "retry": RETRY} | changes)))


async def answer_of(client: Client, llmock: LLMock, **changes: Any) -> Any:
    async with asking(client, llmock) as ask:
        return await guard(**changes).call(ask)


async def whole_stream(client: Client, llmock: LLMock, **changes: Any) -> str:
    async with asking(client, llmock) as ask:
        return text_of(await guard(**changes).call(collected(ask)))


async def attempts_in(llmock: LLMock) -> int:
    """How many requests were sent, for a client that the server finds nothing wrong with."""
    verdict = await asyncio.to_thread(llmock.verdict)
    verdict.assert_ok(strict=True)
    assert verdict.faults
    return verdict.attempts


# ---------------------------------------------------------------------- behind a guard


@of([*ANSWERING, *EMBEDDING])
@pytest.mark.usefixtures("_as_protected")
@pytest.mark.parametrize("status", PASSING)
async def test_a_call_is_retried_after_an_error(
    client: Client, status: int, provider: LLMock
) -> None:
    provider.fail(status, retry_after=0.1 if status in WITH_A_WAIT else None)
    answer = await answer_of(client, provider)
    assert len(answer) == 1536 if client in EMBEDDING else answer == TEXT
    assert await attempts_in(provider) == 2


@pytest.mark.parametrize("status", PASSING)
async def test_a_call_is_retried_after_an_error_on_the_wire(status: int, provider: LLMock) -> None:
    provider.fail(status, retry_after=0.1 if status in WITH_A_WAIT else None)
    policy = Policy.llm(retry=RETRY)
    transport = ResilientTransport(name="llm.wire", policy=policy, registry=Guards())
    async with openai.AsyncOpenAI(
        base_url=provider.base_url(),
        api_key="none",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    ) as sdk:
        answer: Any = await say(sdk, 1)
    assert answer.choices[0].message.content == TEXT
    assert await attempts_in(provider) == 2


@of(STREAMING)
@pytest.mark.usefixtures("_as_protected")
@pytest.mark.parametrize("status", [429, 500])
async def test_a_stream_is_retried_after_an_error(
    client: Client, status: int, provider: LLMock
) -> None:
    provider.fail(status, retry_after=0.1 if status in WITH_A_WAIT else None)
    assert await whole_stream(client, provider) == TEXT
    assert await attempts_in(provider) == 2


@of([*ANSWERING, *EMBEDDING])
@pytest.mark.usefixtures("_as_protected")
@pytest.mark.parametrize("status", FOR_GOOD)
async def test_a_fatal_error_is_not_retried(client: Client, status: int, provider: LLMock) -> None:
    provider.fail(status)
    with pytest.raises(Exception, match=str(status)):
        await answer_of(client, provider)
    assert await attempts_in(provider) == 1


@of([*ANSWERING, *STREAMING])
@pytest.mark.usefixtures("_as_protected")
@pytest.mark.parametrize("by_size", [False, True])
async def test_a_prompt_that_is_too_long_is_not_retried(
    client: Client,
    by_size: bool,  # noqa: FBT001
    provider: LLMock,
) -> None:
    if by_size:
        provider.limits(context_window=1)
    else:
        provider.context_overflow()
    with pytest.raises(Exception, match=r"maximum|Bad request|too long"):
        await answer_of(client, provider)
    assert await attempts_in(provider) == 1


@of(STREAMING)
@pytest.mark.usefixtures("_as_protected")
@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("after", [0, 1, 4])
async def test_a_broken_stream_is_retried_from_the_start(
    client: Client, kind: str, after: int, provider: LLMock
) -> None:
    break_next(provider, kind, after)
    assert await whole_stream(client, provider, retry=REGULAR) == TEXT
    assert await attempts_in(provider) == 2


@of(STREAMING)
@pytest.mark.usefixtures("_as_protected")
@pytest.mark.parametrize("after", [0, 5])
async def test_a_stalled_stream_is_retried(client: Client, after: int, provider: LLMock) -> None:
    provider.stall(after_chunks=after, seconds=5.0)
    assert await whole_stream(client, provider) == TEXT
    assert await attempts_in(provider) == 2


@of([*ANSWERING, *STREAMING])
@pytest.mark.usefixtures("_as_protected")
async def test_a_late_answer_is_retried(client: Client, provider: LLMock) -> None:
    timeout = TimeoutPolicy(attempt=1.5, total=60.0)
    if client in STREAMING:
        provider.slow_first_token(2.5)
        assert await whole_stream(client, provider, timeout=timeout) == TEXT
    else:
        provider.delay(2.5)
        assert await answer_of(client, provider, timeout=timeout) == TEXT
    verdict = await asyncio.to_thread(provider.verdict)
    verdict.assert_ok(strict=True)
    assert verdict.attempts >= 2


@of(ANSWERING)
@pytest.mark.usefixtures("_as_protected")
async def test_backoff_grows_with_consecutive_errors(client: Client, provider: LLMock) -> None:
    provider.fail(500, times=3)
    assert await answer_of(client, provider, retry=REGULAR) == TEXT
    assert await attempts_in(provider) == 4


@of(STREAMING)
@pytest.mark.usefixtures("_as_protected")
async def test_consecutive_breaks_of_each_kind_are_retried(
    client: Client, provider: LLMock
) -> None:
    for kind in BREAKS:
        break_next(provider, kind, 3)
    assert await whole_stream(client, provider, retry=REGULAR) == TEXT
    assert await attempts_in(provider) == 4


@of(ANSWERING)
@pytest.mark.usefixtures("_as_protected")
async def test_a_call_fails_after_a_few_growing_backoffs(client: Client, provider: LLMock) -> None:
    provider.fail(500, times=None)
    with pytest.raises(Exception):  # noqa: B017, PT011 - each SDK has its own
        await answer_of(client, provider, retry=REGULAR)
    assert await attempts_in(provider) == 4


@of(ANSWERING)
@pytest.mark.usefixtures("_as_protected")
async def test_each_retry_after_of_a_provider_is_respected(
    client: Client, provider: LLMock
) -> None:
    provider.rate_limit(times=2, retry_after=0.2).fail(503, retry_after=0.2)
    assert await answer_of(client, provider) == TEXT
    assert await attempts_in(provider) == 4


@of(ANSWERING[:2])
async def test_a_quota_of_requests_is_respected(client: Client, provider: LLMock) -> None:
    provider.limits(rpm=30)  # two too many, for all that comes back in 4 s
    one = guard()
    async with sdk_of(client, provider.base_url(client.provider)) as sdk:
        await asyncio.gather(*(one.call(say, sdk, number) for number in range(32)))
    assert await attempts_in(provider) > 32


@of(ANSWERING[:2])
async def test_a_quota_of_tokens_is_respected(client: Client, provider: LLMock) -> None:
    provider.limits(tpm=12_000)  # too many, for all that comes back in 3 s
    one = guard()
    async with sdk_of(client, provider.base_url(client.provider)) as sdk:
        for number in range(12):
            await one.call(say, sdk, number, max_tokens=1050)
    assert await attempts_in(provider) > 12


@of(STREAMING[:2])
async def test_calls_survive_a_mix_of_all_errors(
    client: Client, provider: LLMock, llmock_server: LLMockServer
) -> None:
    state = llmock_server.state
    state.chaos = ChaosSettings(error_rates={500: 0.1, 502: 0.1})
    rates = tuple((kind, 0.05) for kind in ("disconnect", "truncate", "malformed", "stall"))
    state.stream_chaos = StreamChaos(rates, stall_seconds=4.0, chunk_delay_ms=5)
    retry = RetryPolicy(attempts=10, initial_backoff=0.1, max_backoff=1.0, budget=0)
    one = guard(retry=retry, breaker=BreakerPolicy(mode="metrics-only"))
    async with sdk_of(client, provider.base_url(client.provider)) as sdk:
        asked = [one.call(collected(say), sdk, number, stream=True) for number in range(20)]
        answers = await asyncio.gather(*asked)
    assert [text_of(answer) for answer in answers] == [TEXT] * 20
    verdict = await asyncio.to_thread(provider.verdict)
    # Not strict: short waits look alike on a busy machine, and what follows a malformed event may
    # be sent before the client has left.
    verdict.assert_ok()
    assert {found.code for found in verdict.findings} <= {"no_backoff", "malformed_chunk_ignored"}
    assert verdict.faults


# ---------------------------------------------------------------------- shown to a reader at once


@of(STREAMING)
@pytest.mark.usefixtures("_as_protected")
@pytest.mark.parametrize("kind", [*BREAKS, "stall"])
async def test_a_reader_of_a_broken_stream_gets_an_error_and_can_retry(
    client: Client, kind: str, provider: LLMock
) -> None:
    break_next(provider, kind, 4)
    errors = {
        "truncate": (TruncatedStreamError,),
        "stall": (AttemptTimeoutError,),
        "corrupt": (ValueError,),
        "disconnect": (openai.APIConnectionError, httpx2.RequestError),
    }
    one = guard()
    async with asking(client, provider) as ask:
        with pytest.raises(errors[kind]):
            text_of([item async for item in await one.call(ask)])
        assert one.breaker.snapshot().failed == 1
        await asyncio.sleep(0.1)
        assert text_of([item async for item in await one.call(ask)]) == TEXT
    assert await attempts_in(provider) == 2
