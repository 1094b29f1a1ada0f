"""MinerU's and Docling's servers over HTTP, which fail as a test says."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import zipfile
from collections import Counter
from pathlib import PurePath
from typing import Any, Literal, Self

import pytest
from aiohttp import web

from .ports import free_port

Engine = Literal["mineru", "docling"]
Fault = Literal["none", "dead", "hung", "500", "nonsense", "refuses"]
_STATES = {
    "mineru": ("processing", "failed", "completed"),
    "docling": ("started", "failure", "success"),
}


class FakeParser:
    """A server that parses a file into its own text.

    Args:
        engine: Whose protocol it speaks.

    Attributes:
        fault: What goes wrong now; ``dead`` is set by `die`.
        requests: How many came, by path, with the task's number replaced by ``*``.
        uploads: How many came of each file, by name.
        tasks: The name and text of each file that it was given, by task.
        is_busy: Whether it is still at work on all of them.
        is_forgetful: Whether it knows no task any more, whatever it is given.
        heading: What the text of each result begins with.
        text: What the text of each result is instead of the file's, if not empty.
        rejected: What it cannot parse, by the file's name.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.fault: Fault = "none"
        self.requests: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.tasks: dict[str, tuple[str, str]] = {}
        self.is_busy = self.is_forgetful = False
        self.heading = self.text = ""
        self.rejected: set[str] = set()
        self.reached = asyncio.Event()
        self._port = free_port()  # no connection takes it while the parser is dead
        self._goal = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def configure(self, environment: pytest.MonkeyPatch) -> None:
        """Let LightRAG use it."""
        environment.setenv("MINERU_API_MODE", "local")
        environment.setenv("MINERU_POLL_INTERVAL_SECONDS", "0.02")
        environment.setenv("DOCLING_POLL_INTERVAL_SECONDS", "1")
        name = "MINERU_LOCAL_ENDPOINT" if self.engine == "mineru" else "DOCLING_ENDPOINT"
        environment.setenv(name, self.url)

    async def after(self, requests: int) -> None:
        """Wait until so many more requests have come."""
        self._goal = self.requests.total() + requests
        self.reached.clear()
        await self.reached.wait()

    async def die(self) -> None:
        """Close all connections and refuse new ones."""
        self.fault = "dead"
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def revive(self, *, forgets: bool = False) -> None:
        """Answer again, at the same address; a restarted server may have forgotten its tasks."""
        if forgets:
            self.tasks.clear()
        self.fault = "none"
        if self._runner is None:
            await self._listen()

    async def break_for(self, fault: Fault, seconds: float) -> None:
        if fault == "dead":
            await self.die()
        self.fault = fault
        await asyncio.sleep(seconds)
        await self.revive()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def _listen(self) -> None:
        app = web.Application(middlewares=[self._misbehave])
        start, ask, result = (
            ("/tasks", "/tasks/{task}", "/tasks/{task}/result")
            if self.engine == "mineru"
            else ("/v1/convert/file/async", "/v1/status/poll/{task}", "/v1/result/{task}")
        )
        app.add_routes(
            [
                web.post(start, self._upload),
                web.get(ask, self._ask),
                web.get(result, self._result),
                web.get("/health", self._health),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        await self._runner.setup()
        listener = socket.create_server(("127.0.0.1", self._port))
        await web.SockSite(self._runner, listener).start()

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Any) -> web.StreamResponse:
        task = request.match_info.get("task")
        self.requests[request.path.replace(task, "*") if task else request.path] += 1
        if self.requests.total() == self._goal:
            self.reached.set()
        match self.fault:
            case "hung":
                while self.fault == "hung":  # noqa: ASYNC110 - until the test ends the fault
                    await asyncio.sleep(0.05)
                raise web.HTTPGatewayTimeout
            case "500":
                raise web.HTTPInternalServerError
            case "nonsense":
                return web.Response(text="<html>Maintenance</html>", content_type="text/html")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file: Any = form["files"]
        self.uploads[file.filename] += 1
        if self.fault == "refuses":
            raise web.HTTPUnprocessableEntity
        task = f"task-{len(self.tasks) + 1}-{self.uploads.total()}"
        self.tasks[task] = file.filename, self.heading + (self.text or file.file.read().decode())
        return web.json_response({"task_id": task})

    async def _ask(self, request: web.Request) -> web.Response:
        name, _ = self._task(request)
        states = _STATES[self.engine]
        state = states[0] if self.is_busy else states[1] if name in self.rejected else states[2]
        return web.json_response({"status": state})

    async def _result(self, request: web.Request) -> web.Response:
        name, text = self._task(request)
        stem = PurePath(name).stem
        if self.engine == "mineru":
            content: Any = [{"type": "text", "text": text, "page_idx": 0}]
            files = {f"{stem}/auto/{stem}_content_list.json": json.dumps(content)}
        else:
            content = {
                "schema_name": "DoclingDocument",
                "body": {"self_ref": "#/body", "children": [{"$ref": "#/texts/0"}]},
                "texts": [{"self_ref": "#/texts/0", "label": "text", "text": text}],
            }
            files = {f"{stem}.json": json.dumps(content), f"{stem}.md": text}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as bundle:
            for path, written in files.items():
                bundle.writestr(path, written)
        return web.Response(body=packed.getvalue(), content_type="application/zip")

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    def _task(self, request: web.Request) -> tuple[str, str]:
        known = self.tasks.get(request.match_info["task"])
        if known is None or self.is_forgetful:
            raise web.HTTPNotFound
        return known
