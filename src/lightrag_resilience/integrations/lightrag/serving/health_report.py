"""LightRAG's ``/health``, which also says which dependencies are not well."""

from __future__ import annotations

import json
from typing import Any

from lightrag_resilience.integrations.asgi.messages import (
    Application,
    Message,
    Receive,
    Scope,
    Send,
    route_path,
    send_response,
)
from lightrag_resilience.integrations.lightrag.compat import HEALTH_DETAILS, HEALTH_PATH
from lightrag_resilience.pipeline.registry import Guards, resolve_guards

__all__ = ["HealthReport"]

_LARGEST = 1024 * 1024  # bytes of an answer that is extended


class HealthReport:
    """ASGI middleware: adds ``resilience`` to LightRAG's answer about its health.

    ``degraded`` says whether a dependency is not well, as this process sees it. Callers that
    LightRAG shows its configuration get the names as well, each with its condition.

    Args:
        app: LightRAG's application.
        registry: The guards that it calls through; those of the process by default.
    """

    def __init__(self, app: Application, *, registry: Guards | None = None) -> None:
        self._app = app
        self._registry = resolve_guards(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and route_path(scope) == HEALTH_PATH
        ):
            send = _Answer(send, self._registry).send
        await self._app(scope, receive, send)


class _Answer:
    """An answer that is held until it is whole, and then extended if it is an object in JSON."""

    def __init__(self, send: Send, registry: Guards) -> None:
        self._send = send
        self._registry = registry
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:  # noqa: PLR2004
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            is_whole = not message.get("more_body")
            if is_whole or len(self._body) > _LARGEST:
                await self._pass_on(self._start, is_whole=is_whole)

    async def _pass_on(self, start: Message, *, is_whole: bool) -> None:
        self._start = None
        if is_whole and (body := self._extended()) is not None:
            headers = [it for it in start.get("headers", ()) if it[0].lower() != b"content-length"]
            await send_response(self._send, start["status"], body, headers)
            return
        await self._send(start)
        more = {"type": "http.response.body", "body": self._body, "more_body": not is_whole}
        await self._send(more)

    def _extended(self) -> bytes | None:
        try:
            content = json.loads(self._body)
        except ValueError:
            return None
        if not isinstance(content, dict):
            return None
        content["resilience"] = self._report(with_names=HEALTH_DETAILS in content)
        return json.dumps(content).encode()

    def _report(self, *, with_names: bool) -> dict[str, Any]:
        found = {guard.name: guard.health for guard in self._registry}
        conditions = {name: it.condition for name, it in found.items() if not it.is_well}
        report: dict[str, Any] = {"degraded": bool(conditions)}
        return report | {"dependencies": conditions} if with_names else report
