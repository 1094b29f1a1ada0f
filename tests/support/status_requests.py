"""Requests to the status page, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.status import StatusPage

TOKEN = "a-token-for-tests-alone"  # noqa: S105 - it protects nothing
PATIENCE = 20.0  # seconds


def made(**variables: str) -> Guards:
    environ = {f"RESILIENCE_{name}": value for name, value in variables.items()}
    return Guards(settings=load_settings({"RESILIENCE_DEFAULT__RETRY__ATTEMPTS": "1", **environ}))


class Answer:
    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.news = asyncio.Event()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.news.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        found = re.findall(rb"^data: (.*)$", self.body, re.MULTILINE)
        return [json.loads(event) for event in found]

    @property
    def has_ended(self) -> bool:
        return bool(self.sent[1:]) and not self.sent[-1].get("more_body")


def scope_of(path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"type": "http", "path": path, "method": method, "headers": pairs, "root_path": ""}


async def ask(app: StatusPage, path: str, method: str = "GET", **other: Any) -> Answer:
    answer = Answer()

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    await app({**scope_of(path, method), **other}, receive, answer.send)
    return answer


async def act(
    app: StatusPage,
    content: Any,
    token: str | None = TOKEN,
    *,
    kind: str = "application/json",
    body_breaks_off: bool = False,
) -> Answer:
    headers = {"content-type": kind}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    parts = [body[:10], body[10:]]
    answer = Answer()

    async def receive() -> Any:
        if body_breaks_off and len(parts) == 1:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    await app(scope_of("/resilience/actions", "POST", headers), receive, answer.send)
    return answer


class Watcher(Answer):
    """The reader of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves = asyncio.Event()

    async def receive(self) -> Any:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def until(self, condition: Callable[[Any], Any]) -> Any:
        """The first event of which it is so."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for event in self.events:
                    if condition(event):
                        return event
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def watching(app: StatusPage) -> AsyncIterator[tuple[Watcher, asyncio.Task[None]]]:
    watcher = Watcher()
    task = asyncio.ensure_future(app(scope_of("/resilience/events"), watcher.receive, watcher.send))
    try:
        yield watcher, task
    finally:
        watcher.leaves.set()
        await asyncio.wait_for(task, PATIENCE)


async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def page(guards: Guards, token: str | None = TOKEN) -> StatusPage:
    return StatusPage(elsewhere, registry=guards, token=token)


async def trip(guards: Guards, name: str, times: int = 6) -> None:
    async def fail() -> None:
        raise ConnectionRefusedError("made up")

    for _ in range(times):
        with contextlib.suppress(ConnectionRefusedError):
            await guards.get(name).call(fail)


def of(data: Any, name: str) -> Any:
    return next((row for row in data["dependencies"] if row["name"] == name), {"state": None})
