"""What becomes of an answer of 500 where a dependency failed: rules, on a made-up application."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag_resilience import (
    AttemptTimeoutError,
    BulkheadFullError,
    CircuitOpenError,
    DeadlineExceededError,
    Failure,
    FailureKind,
    Guards,
    RateLimitedError,
    ShuttingDownError,
    TruncatedStreamError,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import QueryFailedError
from lightrag_resilience.integrations.lightrag.serving.http_errors import DependencyErrorMiddleware
from lightrag_resilience.integrations.lightrag.work.context import current_request
from lightrag_resilience.telemetry.correlation import correlated

pytestmark = pytest.mark.anyio
ASKED = {"method": "POST", "path": "/query"}
HEADERS = [(b"content-length", b"2"), (b"access-control-allow-origin", b"*"), (b"X-Id", b"7")]


def failed(error: Exception) -> None:
    request = current_request.get()
    assert request is not None
    request.last = "llm.openai", error


async def answers(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b"no", "more_body": False})


async def ask(application: Callable[[Any], Awaitable[None]], kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await application(send)

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await DependencyErrorMiddleware(app)({"type": kind, **ASKED}, receive, send)
    return sent


class ReadTimeoutError(Exception):
    """One of an SDK's own."""


def throttled() -> Exception:
    error = RuntimeError()
    vars(error)["__resilience_failure__"] = Failure(FailureKind.THROTTLED, 7.0)
    return error


@pytest.mark.parametrize(
    ("error", "status", "wait", "detail"),
    [
        (CircuitOpenError("llm.openai", 3.2, "after 5 failures"), 503, 4, "{} is not available."),
        (CircuitOpenError("llm.openai", 0.01, "after 5 failures"), 503, 1, "{} is not available."),
        (CircuitOpenError("llm.openai", None, "by hand"), 503, 5, "{} is not available."),
        (ConnectionRefusedError("10.0.0.7"), 503, 5, "{} is not available."),
        (AttemptTimeoutError("llm.openai", None, "after 30 s"), 503, 5, "{} took too long"),
        (DeadlineExceededError("llm.openai", None, "after 30 s"), 503, 5, "{} took too long"),
        (ReadTimeoutError(), 503, 5, "{} took too long to answer."),
        (RateLimitedError("llm.openai", 90.0), 503, 90, "{} takes no more requests"),
        (throttled(), 503, 7, "{} takes no more requests at the moment. Try again in 7 s."),
        (BulkheadFullError("llm.openai", 2.0), 503, 2, "Too many requests wait for the language m"),
        (TruncatedStreamError("llm.openai"), 503, 5, "The answer was cut off by the language m"),
        (ShuttingDownError("llm.openai", 2.0), 503, 2, "This server is about to stop or restart"),
        (ValueError("key sk-123 is wrong"), 502, None, "{} refused the request. Asking again"),
    ],
)
async def test_the_answer_says_what_failed_and_when_to_retry(
    error: Exception, status: int, wait: int | None, detail: str
) -> None:
    async def application(send: Any) -> None:
        failed(error)
        await answers(send, 500)

    start, body = await ask(application)
    headers = {name.lower(): value for name, value in start["headers"]}
    content = json.loads(body["body"])
    assert start["status"] == status
    assert headers.get(b"retry-after") == (None if wait is None else str(wait).encode())
    assert content["retry_after"] == wait
    assert content["dependency"] == "llm.openai"
    assert content["detail"].startswith(detail.format("The language model"))
    assert ("Try again in" in content["detail"]) == (wait is not None)
    assert "llm.openai" not in content["detail"]
    assert "llm.openai" in content["cause"]
    for text in (content["detail"], content["cause"]):
        assert "sk-123" not in text
        assert "10.0.0.7" not in text
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert headers[b"access-control-allow-origin"] == b"*"
    assert headers[b"x-id"] == b"7"


@pytest.mark.parametrize(
    ("dependency", "words"),
    [
        ("llm", "The language model"),
        ("embedding.ollama", "The embedding model"),
        ("rerank.jina", "The reranker"),
        ("storage.postgres", "The database"),
        ("parser.mineru", "The service that parses documents"),
        ("search", "A service that is needed for this"),
    ],
)
async def test_users_read_which_service_is_unavailable(dependency: str, words: str) -> None:
    async def application(send: Any) -> None:
        failed(CircuitOpenError(dependency, 200.0))
        await answers(send, 500)

    _, body = await ask(application)
    detail = json.loads(body["body"])["detail"]
    assert detail == f"{words} is not available. Try again in 3 m 20 s."


@pytest.mark.parametrize("identity", ["r-1", None])
async def test_the_answer_has_the_id_of_its_request(identity: str | None) -> None:
    async def application(send: Any) -> None:
        failed(CircuitOpenError("llm.openai"))
        await answers(send, 500)

    with contextlib.nullcontext() if identity is None else correlated(identity):
        _, body = await ask(application)
    assert json.loads(body["body"]).get("request_id") == identity


@pytest.mark.parametrize("status", [200, 404, 422, 501, 503])
async def test_other_answers_are_passed_on(status: int) -> None:
    async def application(send: Any) -> None:
        failed(OSError())
        await answers(send, status)

    assert [message.get("status") for message in await ask(application)] == [status, None]


async def test_an_error_that_no_dependency_caused_stays_what_it_is() -> None:
    async def application(send: Any) -> None:
        await answers(send, 500)

    assert (await ask(application))[0]["status"] == 500

    async def breaks(_: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await ask(breaks)


async def test_an_error_before_the_answer_starts_is_answered() -> None:
    async def application(_: Any) -> None:
        failed(OSError())
        raise OSError

    start, _body = await ask(application)
    assert start["status"] == 503


async def test_an_error_in_the_middle_of_an_answer_is_raised() -> None:
    class BreaksOffError(Exception):
        pass

    async def application(send: Any) -> None:
        await answers(send, 200)
        failed(OSError())
        raise BreaksOffError

    with pytest.raises(BreaksOffError):
        await ask(application)


async def test_a_websocket_is_passed_on() -> None:
    async def application(_: Any) -> None:
        assert current_request.get() is None

    assert await ask(application, "websocket") == []


async def test_the_last_line_of_a_stream_has_the_same_fields() -> None:
    error = QueryFailedError("llm.openai", None, "with ReadError")

    async def application(send: Any) -> None:
        kind = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        words = b'{"response": "an \\"error\\""}\n'
        await send({"type": "http.response.body", "body": words, "more_body": True})
        failed(error)
        request = current_request.get()
        assert request is not None
        request.is_cut_off = True
        for text in (str(error), "of another kind"):
            line = json.dumps({"error": text}).encode() + b"\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})
        ollama = {"response": f"Error: {error}", "error": f"Error: {error}", "done": True}
        await send({"type": "http.response.body", "body": json.dumps(ollama).encode()})

    with correlated("r-1"):
        _, first, last, other, ollama = await ask(application)
    detail = "The answer was cut off by the language model. Try again in 5 s."
    assert json.loads(first["body"]) == {"response": 'an "error"'}
    assert json.loads(last["body"]) == {
        "error": detail,
        "cause": str(error),
        "dependency": "llm.openai",
        "retry_after": 5,
        "request_id": "r-1",
    }
    assert last["body"].endswith(b"\n")
    assert json.loads(other["body"]) == {"error": "of another kind"}
    assert json.loads(ollama["body"])["response"] == f"Error: {detail}"


# ---------------------------------------------------------------------- given up by a drain


class CancelledRequest:
    """A server's side of one request that is cancelled amid its answer."""

    def __init__(self, answer: Callable[[Any], Awaitable[None]], *, drains: bool = True) -> None:
        self.registry = Guards(settings=load_settings({}))
        self.sent: list[Any] = []
        self.waits = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await answer(send)
            self.waits.set()
            await asyncio.Event().wait()

        self.app = DependencyErrorMiddleware(app, registry=self.registry)
        if drains:
            self.registry.gate.close()

    async def cancelled(self) -> bool:
        """Whether the cancellation was raised; `sent` has what was sent."""

        async def send(message: Any) -> None:
            self.sent.append(message)

        async def receive() -> Any:
            raise AssertionError

        task = asyncio.create_task(self.app({"type": "http", **ASKED}, receive, send))
        await self.waits.wait()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()


async def nothing(send: Any) -> None:
    del send


async def lines(send: Any, *, more: bool = True) -> None:
    kind = [(b"content-type", b"application/x-ndjson")]
    await send({"type": "http.response.start", "status": 200, "headers": kind})
    await send({"type": "http.response.body", "body": b'{"response": "Ada"}\n', "more_body": more})


async def all_lines(send: Any) -> None:
    await lines(send, more=False)


async def html(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_a_request_that_a_drain_cancels_gets_retry_after() -> None:
    cancelled_request = CancelledRequest(nothing)
    assert not await cancelled_request.cancelled()
    start, body = cancelled_request.sent
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert dict(start["headers"])[b"connection"] == b"close"
    content = json.loads(body["body"])
    assert content["detail"].startswith("This server is about to stop or restart. Try again in")
    assert "shuts down" in content["cause"]


async def test_a_stream_that_a_drain_cancels_ends_with_an_error_line() -> None:
    cancelled_request = CancelledRequest(lines)
    assert not await cancelled_request.cancelled()
    last = cancelled_request.sent[-1]
    assert json.loads(last["body"])["error"].startswith("This server is about to stop")
    assert "shuts down" in json.loads(last["body"])["cause"]
    assert last["body"].endswith(b"\n")
    assert not last.get("more_body")


@pytest.mark.parametrize("answer", [all_lines, html])
async def test_a_request_whose_answer_cannot_be_ended_is_cancelled(
    answer: Callable[[Any], Awaitable[None]],
) -> None:
    cancelled_request = CancelledRequest(answer)
    assert await cancelled_request.cancelled()
    assert b"shuts down" not in cancelled_request.sent[-1].get("body", b"")


async def test_a_cancellation_without_a_drain_is_raised() -> None:
    cancelled_request = CancelledRequest(nothing, drains=False)
    assert await cancelled_request.cancelled()
    assert cancelled_request.sent == []
