"""LightRAG's answer about its health says which dependencies are not well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag.serving.health_report import HealthReport

pytestmark = pytest.mark.anyio
JSON = [(b"content-type", b"application/json"), (b"content-length", b"7")]


async def answer(
    parts: Sequence[bytes], *, status: int = 200, path: str = "/health"
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body behind the middleware, while ``llm`` is open and ``rerank`` closed."""
    guards = Guards(settings=load_settings({}))
    guards.get("llm").breaker.open()
    guards.get("rerank")
    sent: list[Any] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": JSON})
        for number, part in enumerate(parts, 1):
            more = number < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path}
    await HealthReport(application, registry=guards)(scope, receive, send)
    assert sent[0]["status"] == status
    assert not sent[-1].get("more_body")
    return sent[0]["headers"], b"".join(message["body"] for message in sent[1:])


async def test_a_caller_that_sees_the_configuration_sees_the_names() -> None:
    headers, body = await answer([b'{"status": "healthy", ', b'"configuration": {}}'])
    report = {"degraded": True, "dependencies": {"llm": "isolated"}}
    assert json.loads(body) == {"status": "healthy", "configuration": {}, "resilience": report}
    assert (b"content-length", str(len(body)).encode()) in headers
    assert len(headers) == len(JSON)


async def test_any_other_caller_sees_only_whether_it_is_degraded() -> None:
    _, body = await answer([b'{"status": "healthy"}'])
    assert json.loads(body) == {"status": "healthy", "resilience": {"degraded": True}}


@pytest.mark.parametrize(
    ("parts", "changes"),
    [
        ([b"{}"], {"path": "/query"}),
        ([b"{}"], {"status": 500}),
        ([b"no JSON"], {}),
        ([b"[1]"], {}),
        ([b'{"text": "', b"x" * 2_000_000, b'"}'], {}),
    ],
)
async def test_any_other_answer_stays_as_it_is(parts: list[bytes], changes: dict[str, Any]) -> None:
    assert await answer(parts, **changes) == (JSON, b"".join(parts))
