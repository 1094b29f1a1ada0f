"""The transport over real HTTP, plain and below the real openai SDK; rules: test_httpx_rules.py."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import openai
import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    CircuitOpenError,
    FailureKind,
    Guard,
    Guards,
    Policy,
    RetryPolicy,
)
from lightrag_resilience.events import AttemptRejected
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.testing import Fault, Simulator
from support.ports import free_port
from support.wires import new_guards, wire

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Real HTTP takes real time."""
    return "asyncio"


CHAT: Any = {"model": "simulated", "messages": [{"role": "user", "content": "Say something."}]}
QUICK = RetryPolicy(attempts=4, initial_backoff=0.01, max_backoff=0.02)
STAYS_CLOSED: Any = {"retry": QUICK, "consecutive_failures": None, "failure_rate": 1.0}


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def registry() -> Guards:
    return new_guards()


@pytest.fixture
def guard(registry: Guards) -> Guard:
    return registry.get("llm.openai", Policy.llm(**STAYS_CLOSED, attempt_timeout=5.0))


@pytest.fixture
async def http_client(library: Any, registry: Guards, guard: Guard) -> AsyncIterator[Any]:
    async with wire(library, name=guard.name, registry=registry) as client:
        yield client


@pytest.fixture
def sdk(http_client: Any, provider: Simulator) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=provider.base_url, api_key="none", http_client=http_client, max_retries=0
    )


def verdict(guard: Guard) -> tuple[int, int]:
    shown = guard.breaker.snapshot()
    return shown.calls, shown.failed


async def read(sdk: openai.AsyncOpenAI) -> str:
    stream = await sdk.chat.completions.create(**CHAT, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_a_fifth_of_errors_is_hidden_by_retries(
    sdk: openai.AsyncOpenAI, provider: Simulator, guard: Guard
) -> None:
    provider.set_faults([Fault.status(500, share=0.15), Fault.reset(share=0.05)])
    for number in range(20):
        message: Any = {"role": "user", "content": f"Say {number}."}
        answer = await sdk.chat.completions.create(model="simulated", messages=[message])
        assert answer.choices[0].message.content
    failed = provider.count("500") + provider.count("reset")
    assert failed > 0
    assert verdict(guard) == (20 + failed, failed)


async def test_the_sdk_sees_the_providers_own_error(
    sdk: openai.AsyncOpenAI, provider: Simulator, guard: Guard
) -> None:
    provider.set_faults([Fault.status(503)])
    with pytest.raises(openai.InternalServerError, match="simulated failure") as raised:
        await sdk.chat.completions.create(**CHAT)
    assert raised.value.status_code == 503
    assert (provider.count("503"), verdict(guard)) == (4, (4, 4))


@pytest.mark.parametrize(
    ("fault", "kind", "calls"),
    [
        (Fault.status(401), openai.AuthenticationError, 1),
        (Fault.throttle(retry_after=0), openai.RateLimitError, 4),
        (Fault.reset(), openai.APIConnectionError, 4),
        (Fault.truncate(pieces=0), openai.APIConnectionError, 4),
    ],
)
async def test_each_failure_reaches_the_caller_as_the_sdks_error(
    sdk: openai.AsyncOpenAI, provider: Simulator, fault: Fault, kind: Any, calls: int
) -> None:
    provider.set_faults([fault])
    with pytest.raises(kind):
        await sdk.chat.completions.create(**CHAT)
    assert provider.count() == calls


async def test_a_retry_waits_for_the_providers_retry_after(
    sdk: openai.AsyncOpenAI, provider: Simulator, guard: Guard
) -> None:
    provider.set_faults([Fault.throttle(retry_after=0.3, end=0.2)])
    provider.begin()
    await sdk.chat.completions.create(**CHAT)
    first, second = provider.calls
    assert 0.3 <= second.at - first.at < 2.0
    assert verdict(guard) == (1, 0)


async def test_a_complete_stream_is_a_success_and_a_truncated_one_a_failure(
    sdk: openai.AsyncOpenAI, provider: Simulator, guard: Guard
) -> None:
    assert await read(sdk)
    assert verdict(guard) == (1, 0)
    provider.set_faults([Fault.truncate(pieces=4)])
    with pytest.raises((openai.APIConnectionError, httpx.HTTPError, httpx2.HTTPError)):
        await read(sdk)
    # A reset may overtake what was sent before it: then nothing began, and was asked for again.
    failed = provider.count("truncate")
    assert verdict(guard) == (1 + failed, failed)
    assert 1 <= failed <= 4


async def test_a_stream_that_the_caller_closes_early_records_no_outcome(
    sdk: openai.AsyncOpenAI, provider: Simulator, guard: Guard
) -> None:
    stream = await sdk.chat.completions.create(**CHAT, stream=True)
    async with stream:
        await anext(aiter(stream))
    assert verdict(guard) == (0, 0)
    assert await read(sdk)
    assert verdict(guard) == (1, 0)


async def test_a_hanging_call_is_the_sdks_timeout_caused_by_the_guards(
    library: Any, provider: Simulator
) -> None:
    provider.set_faults([Fault.hang()])
    policy = Policy.llm(retry=QUICK, attempts=2, attempt_timeout=0.2)
    async with wire(library, policy=policy) as client:
        sdk = openai.AsyncOpenAI(
            base_url=provider.base_url, api_key="none", http_client=client, max_retries=0
        )
        began = time.monotonic()
        with pytest.raises(openai.APITimeoutError) as raised:
            await sdk.chat.completions.create(**CHAT)
    assert 0.4 <= time.monotonic() - began < 10.0
    assert isinstance(raised.value.__cause__, library.ReadTimeout)
    assert isinstance(raised.value.__cause__.__cause__, AttemptTimeoutError)
    assert classify(raised.value).kind is FailureKind.UNKNOWN_OUTCOME
    assert provider.count("hang") + provider.count("gone") == 2


async def test_a_refused_connection_is_tried_again(library: Any, registry: Guards) -> None:
    port = free_port()
    policy = Policy.storage(retry=QUICK, idempotent=False)
    async with wire(library, policy=policy, registry=registry) as client:
        with pytest.raises(library.ConnectError):
            await client.post(f"http://127.0.0.1:{port}/", json={})
    assert verdict(registry.get(f"http.127.0.0.1-{port}")) == (4, 4)


@pytest.mark.parametrize("retries", [0, 2])
async def test_an_open_circuit_reaches_the_sdks_caller_at_once(
    http_client: Any, provider: Simulator, guard: Guard, retries: int
) -> None:
    guard.breaker.open()
    rejected: list[Any] = []
    guard.events.subscribe(rejected.append, AttemptRejected)
    sdk = openai.AsyncOpenAI(
        base_url=provider.base_url, api_key="none", http_client=http_client, max_retries=retries
    )
    # openai 3 lets it pass; openai 1 and 2, and anthropic, wrap what they do not know.
    with pytest.raises((CircuitOpenError, openai.APIConnectionError)) as raised:
        await sdk.chat.completions.create(**CHAT)
    refused = raised.value
    if isinstance(refused, openai.APIConnectionError):
        assert isinstance(refused.__cause__, CircuitOpenError)
    else:
        assert len(rejected) == 1  # the SDK does not retry
    assert classify(refused).kind is FailureKind.FATAL
    assert provider.count() == 0


async def test_inside_another_guards_call_only_the_outer_guard_retries(
    library: Any, provider: Simulator, registry: Guards
) -> None:
    provider.set_faults([Fault.status(500)])
    outer = registry.get("llm", Policy.llm(retry=QUICK, attempts=2))
    async with wire(library, policy=Policy.llm(retry=QUICK), registry=registry) as client:
        sdk = openai.AsyncOpenAI(
            base_url=provider.base_url, api_key="none", http_client=client, max_retries=0
        )
        create: Any = sdk.chat.completions.create
        with pytest.raises(openai.InternalServerError):
            await outer.call(create, **CHAT)
    assert provider.count() == 2


async def test_a_retried_response_returns_its_connection(library: Any, provider: Simulator) -> None:
    provider.set_faults([Fault.status(500, share=0.5), Fault.truncate(pieces=0, share=0.2)])
    inner = library.AsyncHTTPTransport(limits=library.Limits(max_connections=1))
    policy = Policy().with_changes(**STAYS_CLOSED, attempts=20, idempotent=True)
    async with wire(library, inner, policy=policy, timeout=2.0) as client:
        for number in range(10):
            response = await client.post(
                f"{provider.base_url}/embeddings", json={"input": f"{number}", "model": "simulated"}
            )
            assert response.status_code == 200
        assert len(inner._pool.connections) == 1
        assert all(connection.is_idle() for connection in inner._pool.connections)
        assert inner._pool._requests == []
    assert provider.count("500") > 3


async def test_a_judge_of_results_gets_the_response_before_its_body_is_read(
    http_client: Any, guard: Guard, provider: Simulator
) -> None:
    """Such as a gateway's page with status 200; a body in memory is judged in the same way."""
    judged: list[str] = []

    def no_page(response: Any) -> FailureKind | None:
        judged.append(response.headers["content-type"].partition(";")[0])
        provider.set_faults([])
        return FailureKind.TRANSIENT if "html" in judged[-1] else None

    guard.update_policy(Policy.llm(**STAYS_CLOSED, result=no_page))
    provider.set_faults([Fault.invalid("html_200")])
    answer = await http_client.post(f"{provider.base_url}/chat/completions", json=CHAT)
    assert answer.json()["choices"]
    assert judged == ["text/html", "application/json"]
    assert verdict(guard) == (2, 1)


async def test_a_body_in_memory_is_judged_too(library: Any, registry: Guards) -> None:
    responses = iter([library.Response(200, html="<html>"), library.Response(200, json={})])
    transport = library.MockTransport(lambda _: next(responses))
    seen = Policy(
        retry=QUICK, result=lambda it: FailureKind.TRANSIENT if "html" in it.text else None
    )
    async with wire(library, transport, policy=seen, registry=registry) as client:
        assert (await client.get("http://provider/")).json() == {}
