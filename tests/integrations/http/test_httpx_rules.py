"""What the transport does with each answer, on virtual time."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import (
    BulkheadFullError,
    CallRejected,
    CircuitOpenError,
    ConcurrencyPolicy,
    LimitPolicy,
    RateLimitedError,
)
from support.transports import free_permits, kinds_published, policy, the_guard, verdict
from support.wires import URL, Answer, answers, new_guards, wire

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- statuses


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        *((Answer(status), "transient") for status in (408, 409, 500, 502, 503, 504, 529)),
        (Answer(429), "throttled"),
        (Answer(400, x_should_retry="true"), "transient"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else value,
)
async def test_a_transient_failure_is_retried(library: Any, first: Answer, kind: str) -> None:
    registry = new_guards()
    kinds = kinds_published(registry)
    transport = answers(library, first, Answer(200, b"fine"))
    async with wire(library, transport, policy=policy(), registry=registry) as client:
        key = {"Idempotency-Key": "7"}
        response = await client.post(URL, json={"prompt": "again"}, headers=key)
    assert (response.status_code, response.content) == (200, b"fine")
    assert transport.bodies == [response.request.content] * 2
    assert kinds == [kind]
    counted = kind == "transient"
    assert verdict(the_guard(registry)) == (1 + counted, counted)


@pytest.mark.parametrize("status", [499, 502, 504, 520, 524, 598])
async def test_a_post_with_a_gateway_error_is_not_retried(library: Any, status: int) -> None:
    registry = new_guards()
    transport = answers(library, Answer(status))
    async with wire(library, transport, policy=policy(), registry=registry) as client:
        assert (await client.post(URL, json={})).status_code == status
        assert (len(transport.at), verdict(the_guard(registry))) == (1, (1, 1))
        await client.get(URL)
    assert len(transport.at) > 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_a_client_error_is_returned_and_not_counted(library: Any, status: int) -> None:
    registry = new_guards()
    transport = answers(library, Answer(status, b"because"))
    async with wire(library, transport, policy=policy(), registry=registry) as client:
        response = await client.get(URL)
    assert (response.status_code, response.content) == (status, b"because")
    assert (len(transport.at), verdict(the_guard(registry))) == (1, (0, 0))


async def test_a_response_that_forbids_retries_is_not_retried(library: Any) -> None:
    transport = answers(library, Answer(503, x_should_retry="false"))
    async with wire(library, transport, policy=policy()) as client:
        assert (await client.get(URL)).status_code == 503
    assert len(transport.at) == 1


@pytest.mark.parametrize("status", [200, 204, 304])
async def test_a_response_without_an_error_is_a_success(library: Any, status: int) -> None:
    registry = new_guards()
    transport = answers(library, Answer(status, x_should_retry="true"))
    async with wire(library, transport, registry=registry) as client:
        assert (await client.get(URL)).status_code == status
    assert (len(transport.at), verdict(the_guard(registry))) == (1, (1, 0))


async def test_the_last_response_is_returned_when_the_attempts_are_used_up(library: Any) -> None:
    registry = new_guards()
    sent = [Answer(503, b"first"), Answer(502, b"second"), Answer(500, b"last", x_request_id="7")]
    transport = answers(library, *sent)
    async with wire(library, transport, policy=policy(), registry=registry) as client:
        response = await client.get(URL)
        again = await client.get(URL)
    assert (response.status_code, response.content) == (500, b"last")
    assert response.headers["x-request-id"] == "7"
    assert response.request.url == URL
    assert (again.status_code, verdict(the_guard(registry))) == (500, (6, 6))
    assert transport.at == [0.0, 1.0, 3.0, 3.0, 4.0, 6.0]
    assert all(answer.closed for answer in sent)


async def test_a_response_whose_retry_after_is_too_long_is_returned_at_once(library: Any) -> None:
    transport = answers(library, Answer(429, retry_after="86400"))
    async with wire(library, transport, policy=policy()) as client:
        assert (await client.get(URL)).headers["retry-after"] == "86400"
    assert transport.at == [0.0]


@pytest.mark.parametrize(
    ("headers", "least"),
    [({"retry_after": "7"}, 7.0), ({"retry_after_ms": "2500"}, 2.5), ({}, 1.0)],
)
async def test_the_next_attempt_waits_for_the_retry_after(
    library: Any, headers: dict[str, str], least: float
) -> None:
    transport = answers(library, Answer(503, **headers), Answer())
    async with wire(library, transport, policy=policy()) as client:
        assert (await client.get(URL)).status_code == 200
    assert least <= transport.at[1] <= least + 0.5


SPENT = json.dumps({"error": {"code": "insufficient_quota"}}).encode()


@pytest.mark.parametrize(
    ("body", "encoding", "attempts"),
    [
        (SPENT, "identity", 1),
        (gzip.compress(SPENT), "gzip", 1),
        (SPENT.replace(b"insufficient_quota", b"rate_limit_exceeded"), "identity", 3),
        (b"no JSON", "identity", 3),
        (b"[" * 60_000, "identity", 3),
        (gzip.compress(b" " * 100_000 + SPENT), "gzip", 3),
    ],
    ids=["spent", "packed", "too fast", "no JSON", "deep", "too long"],
)
async def test_a_spent_quota_is_found_in_the_body(
    library: Any, body: bytes, encoding: str, attempts: int
) -> None:
    transport = answers(library, Answer(429, body, content_encoding=encoding))
    async with (
        wire(library, transport, policy=policy()) as client,
        client.stream("GET", URL) as response,
    ):
        assert b"".join([chunk async for chunk in response.aiter_raw()]) == body
    assert len(transport.at) == attempts


async def test_a_corrupt_compressed_error_body_is_left_to_the_client(library: Any) -> None:
    transport = answers(library, Answer(429, b"not gzip", content_encoding="gzip"))
    async with wire(library, transport, policy=policy(attempts=1)) as client:
        with pytest.raises(library.DecodingError):
            await client.get(URL)


async def test_a_long_error_body_is_complete_and_its_connection_returned(
    library: Any,
) -> None:
    parts = [bytes([number]) * 50_000 for number in range(6)]
    sent = [Answer(500, *parts) for _ in range(3)]
    transport = answers(library, *sent)
    async with (
        wire(library, transport, policy=policy()) as client,
        client.stream("GET", URL) as response,
    ):
        assert [answer.read for answer in sent] == [2, 2, 2]
        assert [answer.closed for answer in sent] == [1, 1, 0]
        assert await response.aread() == b"".join(parts)
    assert [answer.closed for answer in sent] == [1, 1, 1]


async def test_responses_made_in_memory_record_an_outcome(library: Any) -> None:
    registry = new_guards()
    spent = library.Response(429, json={"error": {"code": "insufficient_quota"}})
    transport = answers(library, library.Response(503), library.Response(200, text="fine"), spent)
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    async with wire(library, transport, **options) as client:
        assert (await client.get(URL)).text == "fine"
        assert (await client.get(URL)).json()["error"]
    guard = the_guard(registry)
    assert (verdict(guard), free_permits(guard)) == ((2, 1), 1)


async def test_an_error_body_that_the_inner_transport_has_read_is_not_read_again(
    library: Any,
) -> None:
    answer = Answer(429, gzip.compress(SPENT), content_encoding="gzip")

    async def read(_: Any) -> Any:
        response = transport.respond(answer)
        await response.aread()
        return response

    transport = answers(library, read)
    async with wire(library, transport, policy=policy()) as client:
        assert (await client.get(URL)).content == SPENT
    assert len(transport.at) == 1


async def test_a_status_error_raised_by_the_inner_transport_is_raised(
    library: Any,
) -> None:
    request = library.Request("GET", URL)
    error = library.HTTPStatusError("?", request=request, response=library.Response(404))
    async with wire(library, answers(library, error)) as client:
        with pytest.raises(library.HTTPStatusError) as raised:
            await client.get(URL)
    assert raised.value is error


# ---------------------------------------------------------------------- what is not sent


async def test_an_open_circuit_raises_circuit_open_error(library: Any) -> None:
    registry = new_guards()
    transport = answers(library, Answer(503))
    async with wire(library, transport, name="llm.openai", registry=registry) as client:
        registry.get("llm.openai").breaker.open()
        with pytest.raises(CircuitOpenError) as refused:
            await client.get(URL)
    assert (refused.value.dependency, transport.at) == ("llm.openai", [])


async def test_a_circuit_that_opens_between_attempts_raises_with_the_last_response_as_cause(
    library: Any,
) -> None:
    long = Answer(503, b"x" * 70_000, b"more")
    transport = answers(library, long)
    async with wire(library, transport, policy=policy(consecutive_failures=1)) as client:
        with pytest.raises(CircuitOpenError) as refused:
            await client.get(URL)
    assert isinstance(refused.value.__cause__, library.HTTPStatusError)
    assert refused.value.__cause__.response.status_code == 503
    assert (len(transport.at), long.closed) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"concurrency": ConcurrencyPolicy(max_concurrent=1, max_queue=0)}, BulkheadFullError),
        ({"rpm": 1e-3}, RateLimitedError),
    ],
)
async def test_limits_reject(library: Any, changes: Any, kind: type[CallRejected]) -> None:
    transport = answers(library, Answer())
    async with (
        wire(library, transport, policy=policy(**changes)) as client,
        client.stream("GET", URL),
    ):
        with pytest.raises(kind):
            await client.get(URL)
    assert len(transport.at) == 1


ASKED: Any = {"prompt": "x" * 400, "self": "y" * 40, "max_tokens": 90}  # 200 tokens in all


@pytest.mark.parametrize(
    ("body", "allowed"),
    [({"json": ASKED}, 3), ({"content": b"no JSON"}, 6), ({"json": ["list"]}, 6)],
    ids=["asks", "no JSON", "no object"],
)
async def test_tokens_of_a_json_request_are_estimated(
    library: Any, body: Any, allowed: int
) -> None:
    tokens = LimitPolicy(tpm=6000.0, token_burst=600, answer_tokens=100, max_wait=0.0)
    transport = answers(library, Answer())
    async with wire(library, transport, policy=policy(limit=tokens)) as client:
        for _ in range(allowed):
            await client.post(URL, **body)
        with pytest.raises(RateLimitedError):
            await client.post(URL, **body)


async def test_tokens_of_a_one_shot_body_are_not_estimated(library: Any) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{}"

    tokens = LimitPolicy(tpm=6000.0)
    async with wire(library, answers(library, Answer()), policy=policy(limit=tokens)) as client:
        response = await client.post(URL, content=body())
    assert response.status_code == 200
    assert not isinstance(response.request.stream, library.ByteStream)  # never held as a whole


# ---------------------------------------------------------------------- what can be sent again


async def test_a_one_shot_body_is_sent_once(library: Any) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    registry = new_guards()
    transport = answers(library, Answer(503))
    async with wire(library, transport, policy=policy(), registry=registry) as client:
        assert (await client.post(URL, content=body())).status_code == 503
    assert (transport.bodies, verdict(the_guard(registry))) == ([b"once"], (1, 1))


@pytest.mark.parametrize(
    ("error", "idempotent", "attempts"),
    [("ReadError", True, 3), ("ReadError", False, 1), ("ConnectError", False, 3)],
)
async def test_an_unknown_outcome_is_retried_only_if_idempotent(
    library: Any, error: str, idempotent: Any, attempts: int
) -> None:
    failure = getattr(library, error)("lost")
    transport = answers(library, failure)
    async with wire(library, transport, policy=policy(idempotent=idempotent)) as client:
        with pytest.raises(type(failure)) as raised:
            await client.post(URL, json={})
    assert (raised.value, len(transport.at)) == (failure, attempts)


@pytest.mark.parametrize(
    ("method", "headers", "name", "attempts"),
    [
        *((method, {}, None, 1) for method in ("POST", "PATCH")),
        *((method, {}, None, 3) for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")),
        ("POST", {"Idempotency-Key": "k"}, None, 3),
        ("POST", {}, "orders", 1),
        ("GET", {}, "orders", 3),
        ("POST", {}, "llm.openai", 4),
        ("GET", {}, "storage.qdrant", 1),
    ],
)
async def test_without_a_policy_the_method_decides_idempotency(
    library: Any, method: str, headers: dict[str, str], name: str | None, attempts: int
) -> None:
    transport = answers(library, library.ReadTimeout("lost"))
    async with wire(library, transport, name=name) as client:
        with pytest.raises(library.ReadTimeout):
            await client.request(method, URL, headers=headers)
    assert len(transport.at) == attempts


# ---------------------------------------------------------------------- calls inside calls


async def test_inside_a_call_of_the_same_guard_it_passes_straight_through(library: Any) -> None:
    registry, answer = new_guards(), Answer(503)
    guard = registry.get("llm.openai", policy(attempt_timeout=5.0))
    transport = answers(library, answer)
    async with (
        wire(library, transport, name="llm.openai", registry=registry) as client,
        guard,
        client.stream("GET", URL) as response,
    ):
        assert (response.status_code, answer.read) == (503, 0)
    assert (len(transport.at), verdict(guard)) == (1, (1, 0))
    assert set(transport.limits[0].values()) == {10.0}


async def test_inside_another_guards_call_it_is_tried_once(library: Any) -> None:
    registry = new_guards()
    outer = registry.get("llm.openai", policy())
    transport = answers(library, Answer(503))
    async with wire(library, transport, policy=policy(), registry=registry) as client:

        async def ask() -> None:
            (await client.get(URL)).raise_for_status()

        with pytest.raises(library.HTTPStatusError):
            await outer.call(ask)
    assert len(transport.at) == 3
    assert verdict(registry.get("http.provider.test")) == verdict(outer) == (3, 3)


async def test_the_inner_transport_is_opened_and_closed_too(library: Any) -> None:
    transport = answers(library, Answer())
    client = wire(library, transport)
    async with client:
        assert transport.entered == 1
    assert transport.closed == 1
    client = wire(library, transport)
    await client.aclose()
    assert transport.closed == 2
