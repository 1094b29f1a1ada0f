"""What the transport does with each answer, on virtual time."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    CallRejected,
    CircuitOpenError,
    ConcurrencyPolicy,
    DeadlineExceededError,
    Guard,
    Guards,
    LimitPolicy,
    Policy,
    QueueFullError,
    RateLimitedError,
    RetryPolicy,
)
from lightrag_resilience.events import AttemptFailed, Event
from lightrag_resilience.testing import VirtualTimeLoop
from support.wires import URL, Answer, answers, new_guards, wire

pytestmark = pytest.mark.anyio

THREE = RetryPolicy(attempts=3, initial_backoff=1.0, jitter="none")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


def policy(**changes: Any) -> Policy:
    return Policy(retry=THREE).with_changes(**({"consecutive_failures": None} | changes))


def now() -> float:
    return asyncio.get_running_loop().time()


def verdict(guard: Guard) -> tuple[int, int]:
    shown = guard.breaker.snapshot()
    return shown.calls, shown.failed


def free_places(guard: Guard) -> int:
    occupancy = guard.occupancy
    assert occupancy.limit is not None
    return occupancy.limit - occupancy.in_use


def the_guard(registry: Guards) -> Guard:
    (guard,) = registry
    return guard


def kinds_heard(registry: Guards) -> list[str]:
    kinds: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, AttemptFailed):
            kinds.append(event.kind)

    registry.events.listen(listen)
    return kinds


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
async def test_a_passing_failure_is_tried_again(library: Any, first: Answer, kind: str) -> None:
    registry = new_guards()
    kinds = kinds_heard(registry)
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
async def test_a_post_that_a_gateway_lost_is_not_sent_again(library: Any, status: int) -> None:
    registry = new_guards()
    transport = answers(library, Answer(status))
    async with wire(library, transport, policy=policy(), registry=registry) as client:
        assert (await client.post(URL, json={})).status_code == status
        assert (len(transport.at), verdict(the_guard(registry))) == (1, (1, 1))
        await client.get(URL)
    assert len(transport.at) > 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_the_callers_own_fault_is_returned_and_not_counted(library: Any, status: int) -> None:
    registry = new_guards()
    transport = answers(library, Answer(status, b"because"))
    async with wire(library, transport, policy=policy(), registry=registry) as client:
        response = await client.get(URL)
    assert (response.status_code, response.content) == (status, b"because")
    assert (len(transport.at), verdict(the_guard(registry))) == (1, (0, 0))


async def test_a_provider_that_says_no_retry_is_not_asked_again(library: Any) -> None:
    transport = answers(library, Answer(503, x_should_retry="false"))
    async with wire(library, transport, policy=policy()) as client:
        assert (await client.get(URL)).status_code == 503
    assert len(transport.at) == 1


@pytest.mark.parametrize("status", [200, 204, 304])
async def test_an_answer_without_an_error_is_a_success(library: Any, status: int) -> None:
    registry = new_guards()
    transport = answers(library, Answer(status, x_should_retry="true"))
    async with wire(library, transport, registry=registry) as client:
        assert (await client.get(URL)).status_code == status
    assert (len(transport.at), verdict(the_guard(registry))) == (1, (1, 0))


async def test_the_last_answer_is_returned_when_the_attempts_are_used_up(library: Any) -> None:
    registry = new_guards()
    told = [Answer(503, b"first"), Answer(502, b"second"), Answer(500, b"last", x_request_id="7")]
    transport = answers(library, *told)
    async with wire(library, transport, policy=policy(), registry=registry) as client:
        response = await client.get(URL)
        again = await client.get(URL)
    assert (response.status_code, response.content) == (500, b"last")
    assert response.headers["x-request-id"] == "7"
    assert response.request.url == URL
    assert (again.status_code, verdict(the_guard(registry))) == (500, (6, 6))
    assert transport.at == [0.0, 1.0, 3.0, 3.0, 4.0, 6.0]
    assert all(answer.closed for answer in told)


async def test_an_answer_whose_wait_is_too_long_is_returned_at_once(library: Any) -> None:
    transport = answers(library, Answer(429, retry_after="86400"))
    async with wire(library, transport, policy=policy()) as client:
        assert (await client.get(URL)).headers["retry-after"] == "86400"
    assert transport.at == [0.0]


@pytest.mark.parametrize(
    ("headers", "least"),
    [({"retry_after": "7"}, 7.0), ({"retry_after_ms": "2500"}, 2.5), ({}, 1.0)],
)
async def test_the_next_attempt_waits_as_told(
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


async def test_a_packed_body_that_is_broken_is_the_clients_matter(library: Any) -> None:
    transport = answers(library, Answer(429, b"not gzip", content_encoding="gzip"))
    async with wire(library, transport, policy=policy(attempts=1)) as client:
        with pytest.raises(library.DecodingError):
            await client.get(URL)


async def test_a_long_body_of_an_error_is_whole_and_its_connection_is_given_back(
    library: Any,
) -> None:
    parts = [bytes([number]) * 50_000 for number in range(6)]
    told = [Answer(500, *parts) for _ in range(3)]
    transport = answers(library, *told)
    async with (
        wire(library, transport, policy=policy()) as client,
        client.stream("GET", URL) as response,
    ):
        assert [answer.read for answer in told] == [2, 2, 2]
        assert [answer.closed for answer in told] == [1, 1, 0]
        assert await response.aread() == b"".join(parts)
    assert [answer.closed for answer in told] == [1, 1, 1]


async def test_answers_made_in_memory_have_a_verdict_too(library: Any) -> None:
    registry = new_guards()
    spent = library.Response(429, json={"error": {"code": "insufficient_quota"}})
    transport = answers(library, library.Response(503), library.Response(200, text="fine"), spent)
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    async with wire(library, transport, **options) as client:
        assert (await client.get(URL)).text == "fine"
        assert (await client.get(URL)).json()["error"]
    guard = the_guard(registry)
    assert (verdict(guard), free_places(guard)) == ((2, 1), 1)


async def test_an_error_that_the_transport_beneath_has_read_is_not_read_again(
    library: Any,
) -> None:
    told = Answer(429, gzip.compress(SPENT), content_encoding="gzip")

    async def read(_: Any) -> Any:
        response = transport.respond(told)
        await response.aread()
        return response

    transport = answers(library, read)
    async with wire(library, transport, policy=policy()) as client:
        assert (await client.get(URL)).content == SPENT
    assert len(transport.at) == 1


async def test_an_error_of_the_transport_with_a_status_is_not_taken_for_an_answer(
    library: Any,
) -> None:
    request = library.Request("GET", URL)
    error = library.HTTPStatusError("?", request=request, response=library.Response(404))
    async with wire(library, answers(library, error)) as client:
        with pytest.raises(library.HTTPStatusError) as raised:
            await client.get(URL)
    assert raised.value is error


# ---------------------------------------------------------------------- what is not sent


async def test_an_open_circuit_reaches_the_caller_as_it_is(library: Any) -> None:
    registry = new_guards()
    transport = answers(library, Answer(503))
    async with wire(library, transport, name="llm.openai", registry=registry) as client:
        registry.get("llm.openai").breaker.open()
        with pytest.raises(CircuitOpenError) as refused:
            await client.get(URL)
    assert (refused.value.dependency, transport.at) == ("llm.openai", [])


async def test_a_circuit_that_opens_between_attempts_is_told_with_the_answer_before(
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
        ({"concurrency": ConcurrencyPolicy(max_concurrent=1, max_queue=0)}, QueueFullError),
        ({"rpm": 1e-3}, RateLimitedError),
    ],
)
async def test_limits_refuse(library: Any, changes: Any, kind: type[CallRejected]) -> None:
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
async def test_tokens_are_counted_as_a_json_request_asks_for_them(
    library: Any, body: Any, allowed: int
) -> None:
    tokens = LimitPolicy(tpm=6000.0, token_burst=600, answer_tokens=100, max_wait=0.0)
    transport = answers(library, Answer())
    async with wire(library, transport, policy=policy(limit=tokens)) as client:
        for _ in range(allowed):
            await client.post(URL, **body)
        with pytest.raises(RateLimitedError):
            await client.post(URL, **body)


async def test_tokens_of_a_body_that_comes_but_once_are_not_counted(library: Any) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{}"

    tokens = LimitPolicy(tpm=6000.0)
    async with wire(library, answers(library, Answer()), policy=policy(limit=tokens)) as client:
        response = await client.post(URL, content=body())
    assert response.status_code == 200
    assert not isinstance(response.request.stream, library.ByteStream)  # never held as a whole


# ---------------------------------------------------------------------- what can be sent again


async def test_a_body_that_comes_but_once_is_sent_but_once(library: Any) -> None:
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
async def test_what_may_have_been_done_is_asked_again_only_where_that_is_safe(
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
async def test_without_a_policy_the_method_says_what_may_be_sent_again(
    library: Any, method: str, headers: dict[str, str], name: str | None, attempts: int
) -> None:
    transport = answers(library, library.ReadTimeout("lost"))
    async with wire(library, transport, name=name) as client:
        with pytest.raises(library.ReadTimeout):
            await client.request(method, URL, headers=headers)
    assert len(transport.at) == attempts


# ---------------------------------------------------------------------- calls inside calls


async def test_inside_a_call_of_the_same_guard_it_passes_straight_through(library: Any) -> None:
    registry, told = new_guards(), Answer(503)
    guard = registry.get("llm.openai", policy(attempt_timeout=5.0))
    transport = answers(library, told)
    async with (
        wire(library, transport, name="llm.openai", registry=registry) as client,
        guard,
        client.stream("GET", URL) as response,
    ):
        assert (response.status_code, told.read) == (503, 0)
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
    assert (transport.at, now()) == ([0.0, 6.0], 11.0)
    assert verdict(the_guard(registry)) == (2, 2)


async def test_the_deadline_ends_it_and_is_handed_to_the_wire(library: Any) -> None:
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


async def test_after_the_headers_reads_have_the_clients_own_limit_again(library: Any) -> None:
    transport = answers(library, Answer(200, b"one", 50.0, b"two"))
    limited = policy(attempt_timeout=60.0, total_timeout=8.0)
    async with wire(library, transport, policy=limited, timeout=100.0) as client:
        assert (await client.get(URL)).content == b"onetwo"
    assert transport.limits[0]["read"] == 100.0
    assert transport.limits[0]["connect"] == 8.0


async def test_without_timeouts_of_the_guard_the_clients_hold(library: Any) -> None:
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
async def test_the_wires_own_timeout_is_the_guards_where_the_guards_time_is_up(
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
async def test_a_cancelled_request_is_no_verdict_and_keeps_nothing(
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
    assert (verdict(guard), free_places(guard), failed.closed) == ((1, 1), 1, 1)


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


# ---------------------------------------------------------------------- bodies


async def test_the_verdict_falls_at_the_end_of_the_body(library: Any) -> None:
    registry = new_guards()
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    told = Answer(200, b"one", 3.0, b"two")
    async with (
        wire(library, answers(library, told), **options) as client,
        client.stream("GET", URL) as response,
    ):
        guard = the_guard(registry)
        assert (verdict(guard), free_places(guard)) == ((0, 0), 0)
        assert await response.aread() == b"onetwo"
        assert (verdict(guard), free_places(guard)) == ((1, 0), 1)
    assert told.closed == 1


async def test_a_body_that_cannot_begin_is_asked_for_again(library: Any) -> None:
    told = [Answer(200, library.ReadError("cut")), Answer(200, b"fine")]
    async with wire(library, answers(library, *told), policy=policy()) as client:
        assert (await client.get(URL)).content == b"fine"
    assert told[0].closed == 1


async def test_a_body_that_is_cut_off_is_a_failure_and_not_asked_for_again(library: Any) -> None:
    registry = new_guards()
    cut = library.RemoteProtocolError("incomplete")
    transport = answers(library, Answer(200, b"one", cut))
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    async with wire(library, transport, **options) as client:
        with pytest.raises(library.RemoteProtocolError):
            await client.get(URL)
    guard = the_guard(registry)
    assert (len(transport.at), verdict(guard), free_places(guard)) == (1, (1, 1), 1)


async def test_an_errors_body_that_is_cut_off_is_a_failure_of_unknown_outcome(
    library: Any,
) -> None:
    registry = new_guards()
    kinds = kinds_heard(registry)
    told = Answer(500, b"one", library.ReadError("cut"))
    async with wire(library, answers(library, told), registry=registry) as client:
        with pytest.raises(library.ReadError):
            await client.get(URL)
    assert (kinds, told.closed) == (["unknown"] * 3, 3)


async def test_a_body_that_stalls_ends_as_a_timeout_of_the_library(library: Any) -> None:
    registry = new_guards()
    told = Answer(200, b"one", 60.0, b"two")
    options: Any = {"policy": policy(attempt_timeout=5.0), "registry": registry}
    async with wire(library, answers(library, told), **options) as client:
        with pytest.raises(library.ReadTimeout) as raised:
            await client.get(URL)
    assert isinstance(raised.value.__cause__, AttemptTimeoutError)
    assert (now(), told.closed, verdict(the_guard(registry))) == (5.0, 1, (1, 1))


@pytest.mark.parametrize(
    ("chunks", "kind", "calls"),
    [
        ((b"data: 1\n\n", b"data: 2\n\n"), "text/event-stream", 0),
        ((b"data: 1\n\n", b"data: [DO", b"NE]\n\n", b"rest"), "text/event-stream", 1),
        ((b"data: 1\n\n", b"data: [DO", b"NE]\n\n", b"rest"), "text/plain", 0),
    ],
    ids=["unfinished", "at the end marker", "no events"],
)
async def test_a_stream_closed_early_is_no_verdict_but_after_its_end_marker(
    library: Any, chunks: Any, kind: str, calls: int
) -> None:
    registry = new_guards()
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    told = Answer(200, *chunks, content_type=kind)
    async with (
        wire(library, answers(library, told), **options) as client,
        client.stream("POST", URL) as response,
    ):
        body = response.aiter_raw()
        for _ in chunks[:3]:
            await anext(body)
        await response.stream.aclose()
        assert (told.read, told.ended) == (min(len(chunks), 3), 1)
    guard = the_guard(registry)
    assert (verdict(guard), free_places(guard), told.closed) == ((calls, 0), 1, 1)


async def test_a_stream_that_came_whole_in_its_first_chunk_is_a_success_unread(
    library: Any,
) -> None:
    registry = new_guards()
    told = Answer(200, b"data: [DONE]\n\n", content_type="text/event-stream")
    async with (
        wire(library, answers(library, told), registry=registry) as client,
        client.stream("POST", URL),
    ):
        pass
    assert verdict(the_guard(registry)) == (1, 0)


async def test_a_second_reader_goes_on_where_the_first_stopped(library: Any) -> None:
    registry = new_guards()
    told = Answer(200, b"one", b"two", b"three")
    async with (
        wire(library, answers(library, told), registry=registry) as client,
        client.stream("GET", URL) as response,
    ):
        assert await anext(response.aiter_raw()) == b"one"
        assert [chunk async for chunk in response.stream] == [b"two", b"three"]
    assert verdict(the_guard(registry)) == (1, 0)


async def test_a_response_closed_by_another_task_is_settled_once(library: Any) -> None:
    registry = new_guards()
    gone = library.ReadError("closed")
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    told = Answer(200, b"one", 5.0, gone)
    async with (
        wire(library, answers(library, told), **options) as client,
        client.stream("GET", URL) as response,
    ):
        reading = asyncio.ensure_future(response.aread())
        await asyncio.sleep(1.0)
        await response.stream.aclose()
        with pytest.raises(library.ReadError):
            await reading
    guard = the_guard(registry)
    assert (verdict(guard), free_places(guard), told.closed) == ((0, 0), 1, 1)


END_OF_EVENTS = b"data: [DONE]\n\n"


async def test_a_response_may_be_closed_while_another_task_waits_for_its_last_byte(
    library: Any,
) -> None:
    registry = new_guards()
    options: Any = {"policy": policy(max_concurrent=1), "registry": registry}
    told = Answer(200, b"data: 1\n\n", END_OF_EVENTS, 60.0, content_type="text/event-stream")
    async with (
        wire(library, answers(library, told), **options) as client,
        client.stream("GET", URL) as response,
    ):
        reading = asyncio.ensure_future(response.aread())
        await asyncio.sleep(1.0)
        await response.stream.aclose()
        guard = the_guard(registry)
        assert (verdict(guard), free_places(guard), told.closed) == ((1, 0), 1, 1)
        reading.cancel()
        await asyncio.wait([reading])


@pytest.mark.parametrize("attempt", range(5))  # generators are closed in no certain order
def test_a_response_left_open_at_its_end_marker_is_a_success_when_the_loop_ends(
    library: Any, attempt: int
) -> None:
    told = Answer(200, b"data: 1\n\n", END_OF_EVENTS, 60.0, content_type="text/event-stream")
    left, guards = [], []
    del attempt

    async def leave() -> None:
        registry = new_guards()
        client = wire(library, answers(library, told), registry=registry)

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
    assert (verdict(guards[0]), told.closed) == ((1, 0), 1)


async def test_closing_twice_closes_once_and_chunks_need_no_generator(library: Any) -> None:
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


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://API.OpenAI.com/v1", "http.api.openai.com"),
        ("https://api.openai.com:443/v1", "http.api.openai.com"),
        ("http://localhost:11434/api", "http.localhost-11434"),
        ("http://[::1]:8080/", "http.1-8080"),
        ("http://my_host./", "http.my-host"),
        ("http://-/", "http.unknown"),
    ],
)
async def test_each_host_has_a_guard(library: Any, url: str, name: str) -> None:
    registry = new_guards()
    async with wire(library, answers(library, Answer()), registry=registry) as client:
        await client.get(url)
    assert the_guard(registry).name == name


async def test_one_name_serves_all_hosts_or_a_function_names_each_request(library: Any) -> None:
    registry = new_guards()
    transport = answers(library, Answer())
    async with wire(library, transport, name="llm.openai", registry=registry) as client:
        await client.get("http://a.test")
        await client.get("http://b.test")
    assert the_guard(registry).name == "llm.openai"

    def name(request: Any) -> str:
        return f"llm.{request.url.path[1:]}"

    async with wire(library, transport, name=name, registry=registry) as client:
        await client.get("http://a.test/gpt")
    assert [guard.name for guard in registry] == ["llm.gpt", "llm.openai"]


async def test_hosts_beyond_the_bound_share_one_guard_and_it_is_said_once(
    library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry = new_guards()
    options: Any = {"registry": registry, "max_hosts": 2}
    with caplog.at_level(logging.WARNING, "lightrag_resilience"):
        for letters in ("ab", "acd", "cb"):  # a client each
            async with wire(library, answers(library, Answer()), **options) as client:
                for letter in letters:
                    await client.get(f"http://{letter}.test")
    assert [guard.name for guard in registry] == ["http.a.test", "http.b.test", "http.other"]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2  # once for each client that needs it
    assert "'http.c.test'" in warned[0]
    assert "max_hosts" in warned[0]


async def test_the_shared_guard_of_hosts_beyond_the_bound_serves_transports_of_any_policy(
    library: Any,
) -> None:
    registry = new_guards()
    options: Any = {"registry": registry, "max_hosts": 1}
    for number, more in enumerate(({}, {"policy": policy(attempts=2)}, {"policy": policy()})):
        async with wire(library, answers(library, Answer()), **options, **more) as client:
            assert (await client.get(f"http://host{number}.test")).status_code == 200
    assert [guard.name for guard in registry] == ["http.host0.test", "http.other"]


async def test_the_transport_beneath_is_opened_and_closed_with_it(library: Any) -> None:
    transport = answers(library, Answer())
    client = wire(library, transport)
    async with client:
        assert transport.entered == 1
    assert transport.closed == 1
    client = wire(library, transport)
    await client.aclose()
    assert transport.closed == 2
