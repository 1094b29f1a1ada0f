"""Requests and websockets as pieces of work, without a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lightrag_resilience import Guards, ShuttingDownError
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.integrations.asgi import DrainMiddleware
from lightrag_resilience.integrations.asgi.messages import connection_close_header
from lightrag_resilience.integrations.asgi.request_task import request_label
from lightrag_resilience.shutdown import Coordinator

pytestmark = pytest.mark.anyio

HTTP = {"type": "http", "method": "GET", "path": "/documents/7", "http_version": "1.1"}
WEBSOCKET = {"type": "websocket", "path": "/talk"}
START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
Application = Callable[[Any, Any, Any], Awaitable[None]]


class Client:
    """What a server sees of one request."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.sent: list[Any] = []
        self.began = asyncio.Event()
        self._messages = asyncio.Queue[Any]()
        for message in messages:
            self._messages.put_nowait(message)

    async def receive(self) -> Any:
        return await self._messages.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.began.set()

    async def has_sent(self, count: int) -> None:
        """Wait for so many messages."""
        while len(self.sent) < count:
            self.began.clear()
            await self.began.wait()

    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


class Rig:
    """`DrainMiddleware` around an application, with a coordinator of its own."""

    def __init__(self, application: Application, coordinator: Coordinator, **options: Any) -> None:
        registry = Guards(settings=load_settings({}))
        self.app = DrainMiddleware(application, registry=registry, **options)
        self.app.coordinator = self.coordinator = coordinator

    def ask(self, client: Client, scope: dict[str, Any] = HTTP) -> asyncio.Task[None]:
        return asyncio.create_task(self.app(dict(scope), client.receive, client.send))


@contextlib.asynccontextmanager
async def rig(
    application: Application,
    path: Path,
    *,
    timeout: float = 1.5,  # noqa: ASYNC109 - the coordinator's
    **options: Any,
) -> AsyncIterator[Rig]:
    async with Coordinator(
        registry=Guards(settings=load_settings({})),
        handle_signals=False,
        timeout=timeout,
        cancel_grace=0.5,
        close_timeout=0.5,
        journal=path / "journal",
    ) as coordinator:
        yield Rig(application, coordinator, **options)


def journaled(path: Path) -> list[tuple[str, str]]:
    return [(record.name, record.kind) for record in Journal(path / "journal").read()]


async def slow(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(60)


async def half(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await asyncio.sleep(60)


async def with_background(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"answer"})
    await asyncio.sleep(0.3)
    scope["done"].append("background")


async def quick(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"answer"})


async def talk(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": message["text"]})
    scope["done"].append(message["code"])


async def test_a_request_that_does_not_end_in_time_gets_503(tmp_path: Path) -> None:
    client = Client()
    async with rig(slow, tmp_path) as made:
        request = made.ask(client)
        await asyncio.sleep(0.05)
        await made.coordinator.drain()
        await request
    assert client.sent[0]["status"] == 503
    assert client.headers()[b"connection"] == b"close"
    assert journaled(tmp_path) == [("GET /documents/…", "request")]


async def test_a_response_that_has_begun_is_broken_off(tmp_path: Path) -> None:
    client = Client()
    async with rig(half, tmp_path) as made:
        request = made.ask(client)
        await client.began.wait()
        await made.coordinator.drain()
        with pytest.raises(ShuttingDownError, match="did not end in time"):
            await request
    assert client.sent == [START]


async def test_after_a_complete_response_abandoned_work_raises_no_error_in_the_server(
    tmp_path: Path,
) -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await quick(scope, receive, send)
        await asyncio.sleep(60)

    client = Client()
    async with rig(endless, tmp_path) as made:
        request = made.ask(client)
        await client.began.wait()
        await made.coordinator.drain()
        await request
    assert len(client.sent) == 2
    assert len(journaled(tmp_path)) == 1


async def test_work_after_the_response_survives_the_servers_cancellation(
    tmp_path: Path,
) -> None:
    client, done = Client(), list[str]()
    async with rig(with_background, tmp_path) as made:
        request = made.ask(client, {**HTTP, "done": done})
        await client.has_sent(2)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        report = await made.coordinator.drain()
    assert (done, report.drained) == (["background"], 1)


async def test_a_failure_after_the_response_is_logged_once_the_server_has_cancelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await quick(scope, receive, send)
        await asyncio.sleep(0.1)
        raise ValueError("secret")

    client = Client()
    async with rig(failing, tmp_path) as made:
        request = made.ask(client)
        await client.has_sent(2)
        request.cancel()
        await asyncio.wait({request})
        await made.coordinator.drain()
    assert "Work after a response failed: ValueError" in caplog.messages
    assert "secret" not in caplog.text


async def test_an_application_that_cancels_itself_is_no_shutdown(tmp_path: Path) -> None:
    async def cancelled(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    async with rig(cancelled, tmp_path) as made:
        request = made.ask(Client())
        await asyncio.wait({request})
        assert request.cancelled()


async def test_a_request_that_the_server_cancels_is_cancelled(tmp_path: Path) -> None:
    ends: list[str] = []

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ends.append("cancelled")
        raise ValueError

    async with rig(stubborn, tmp_path) as made:
        request = made.ask(Client())
        for _ in range(2):
            await asyncio.sleep(0.05)
            request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert ends == ["cancelled"] * 2
    assert journaled(tmp_path) == []  # it ended by itself, in the end


async def test_a_request_that_the_server_cancels_during_a_drain_is_recorded(tmp_path: Path) -> None:
    async with rig(slow, tmp_path) as made:
        request = made.ask(Client())
        await asyncio.sleep(0.05)
        drain = asyncio.create_task(made.coordinator.drain())
        await asyncio.sleep(0.05)
        request.cancel()
        report = await drain
        assert request.cancelled()
    assert journaled(tmp_path) == [("GET /documents/…", "request")]
    assert len(report.abandoned) == 1


async def test_a_request_that_the_server_cancels_just_before_a_drain_is_recorded(
    tmp_path: Path,
) -> None:
    async with rig(slow, tmp_path) as made:
        request = made.ask(Client())
        await asyncio.sleep(0.05)
        request.cancel()
        await asyncio.wait({request})
        report = await made.coordinator.drain()
    assert journaled(tmp_path) == [("GET /documents/…", "request")]
    assert (report.drained, len(report.abandoned)) == (0, 1)


def test_a_loop_that_ends_during_a_drain_records_work_in_flight(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        """Ends while a drain lasts; asyncio.run then cancels everything at once."""
        entered = contextlib.AsyncExitStack()
        made = await entered.enter_async_context(rig(slow, tmp_path))
        left.extend([entered, made.ask(Client())])
        await asyncio.sleep(0.05)
        made.coordinator.begin("the test")
        await asyncio.sleep(0.05)

    left: list[Any] = []
    asyncio.run(main())
    assert left[1].cancelled()
    assert journaled(tmp_path) == [("GET /documents/…", "request")]


async def test_the_last_requests_are_accepted_with_connection_close(tmp_path: Path) -> None:
    client, late = Client(), Client()
    async with rig(quick, tmp_path, last_requests=60.0, timeout=60.0) as made:
        made.coordinator.keep_draining_for(60.0)
        made.coordinator.begin("the test")
        await made.ask(client)
        made.coordinator.request("no time", skip_waiting=True)
        await asyncio.sleep(0.05)
        assert not made.coordinator.accepts_new_work(60.0)
        await made.ask(late)
    assert (client.sent[0]["status"], late.sent[0]["status"]) == (200, 503)
    assert client.headers() == {b"connection": b"close"}


async def test_a_websocket_that_waits_for_its_client_is_closed_with_1012(tmp_path: Path) -> None:
    client = Client({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"})
    done: list[int] = []
    async with rig(talk, tmp_path) as made:
        request = made.ask(client, {**WEBSOCKET, "done": done})
        await client.has_sent(2)
        report = await made.coordinator.drain()
        await request
    assert [message["type"] for message in client.sent] == [
        "websocket.accept",
        "websocket.send",
        "websocket.close",
    ]
    assert done == [client.sent[-1]["code"]] == [1012]
    assert report.abandoned == ()


async def test_a_websocket_that_is_busy_is_closed_when_its_time_is_up(tmp_path: Path) -> None:
    async def busy(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await asyncio.sleep(60)

    client = Client()
    async with rig(busy, tmp_path) as made:
        request = made.ask(client, WEBSOCKET)
        await client.began.wait()
        await made.coordinator.drain()
        await request
    assert client.sent[-1] == {"type": "websocket.close", "code": 1012}
    assert journaled(tmp_path) == [("websocket /talk", "websocket")]


async def test_a_new_websocket_is_rejected_during_a_drain(tmp_path: Path) -> None:
    client = Client({"type": "websocket.connect"})
    async with rig(talk, tmp_path, last_requests=0.0) as made:
        made.coordinator.begin("the test")
        await made.ask(client, WEBSOCKET)
    assert client.sent == [{"type": "websocket.close", "code": 1012}]


async def test_a_websocket_whose_client_has_gone_is_closed_without_an_error(tmp_path: Path) -> None:
    async def gone(message: Any) -> None:
        raise RuntimeError(message)

    client = Client({"type": "websocket.connect"})
    client.send = gone  # type: ignore[method-assign] # a connection that is closed
    async with rig(talk, tmp_path, last_requests=0.0) as made:
        made.coordinator.begin("the test")
        await made.ask(client, WEBSOCKET)


def test_request_labels_hold_no_secrets() -> None:
    assert request_label({"method": "GET", "path": "/"}) == "GET /"
    assert request_label({"method": "POST", "path": "/query"}) == "POST /query"
    assert request_label({"method": "GET", "path": f"/{'k' * 30}/x"}) == "GET /…"


def test_http_2_has_no_connection_header() -> None:
    assert connection_close_header({"http_version": "2"}) == []


@pytest.mark.parametrize(
    "path",
    ["/\nERROR faked \x1b[31m", "/a\r\nb\x9b/c", "/\u202ea\udc80", "/a\u2028b", "/\x00\x07a"],
)
def test_request_labels_are_printable(path: str) -> None:
    name = request_label({"method": "GET", "path": path})
    assert name.isprintable()
    assert name.startswith("GET /")
