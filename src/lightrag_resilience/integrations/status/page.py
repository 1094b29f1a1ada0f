"""The status page: what is broken, since when, and what is done about it, at ``/resilience``.

::

    app = StatusPage(app)  # any ASGI application; around all other middleware

Readers see the names of dependencies and why they failed, so put it behind the authentication of
the ingress. Opening, closing and isolating breakers needs the token ``RESILIENCE_STATUS_TOKEN``;
without one the page is read-only.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightrag_resilience.config.allowed_hosts import hosts_in, is_allowed_host
from lightrag_resilience.config.process_settings import is_token
from lightrag_resilience.draining.phases import Phase
from lightrag_resilience.errors import PolicyError
from lightrag_resilience.integrations.asgi.messages import (
    Application,
    Headers,
    Receive,
    Scope,
    Send,
    route_path,
    send_json,
    send_response,
)
from lightrag_resilience.pipeline.registry import Guards, resolve_guards

from .actions import LARGEST_BODY, Rejected, act, check_token, read_action
from .observer import StatusObserver, drain_of

__all__ = ["StatusPage"]

_FILES = {
    "": ("page.html", b"text/html; charset=utf-8"),
    "/page.css": ("page.css", b"text/css; charset=utf-8"),
    "/live.js": ("live.js", b"text/javascript; charset=utf-8"),
    "/render.js": ("render.js", b"text/javascript; charset=utf-8"),
    "/actions.js": ("actions.js", b"text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", b"image/svg+xml"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
_POLL = 0.4  # seconds between two snapshots without an event
_FRESH = 0.2  # seconds for which one snapshot serves all viewers
_MIN_INTERVAL = 0.1  # seconds between two snapshots: a burst of events makes one
_HEARTBEAT = 2.0  # seconds after which unchanged data is sent, so that the page sees a live stream
_STREAM_LIFE = (
    10.0  # seconds; the browser reconnects. A server's shutdown waits no longer than that
)
_SEND_TIMEOUT = 5.0  # seconds for a viewer to take what is sent
_BODY_TIMEOUT = 5.0  # seconds for a request's body
_MOST_VIEWERS = 32
# The page counts most of these down itself: alone they are no reason to send.
_VOLATILE = ("at", "retry_after", "seconds_left", "cooldown", "round_trip", "tokens")


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A snapshot, encoded once for all viewers.

    Attributes:
        until: Monotonic seconds until which it is fresh.
        changes: `StatusObserver.changes` when it was taken.
        lasting: The data without `_VOLATILE`; viewers get an event when it changes.
        event: The data as a server-sent event.
    """

    until: float
    changes: int
    lasting: Any
    event: bytes


class StatusPage:
    """ASGI middleware that answers ``/resilience`` and the paths below it.

    Args:
        app: The application.
        registry: The guards to show; those of the process by default.
        token: Allows changing breakers; None is ``RESILIENCE_STATUS_TOKEN``.
        hosts: Public host names under which the page answers, besides addresses and private names;
            None is ``RESILIENCE_STATUS_HOSTS``.

    Raises:
        PolicyError: The token has fewer than 16 characters, or some that a header cannot carry.
    """

    def __init__(
        self,
        app: Application,
        *,
        registry: Guards | None = None,
        token: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> None:
        if token is not None and not (isinstance(token, str) and is_token(token)):
            raise PolicyError("A token has 16 to 256 ASCII characters without spaces")
        self._app = app
        self._registry = resolve_guards(registry)
        self._own_token = token
        self._hosts = hosts
        self._observer = StatusObserver(self._registry)
        self._encoded: _Encoded | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for the page; pass others on."""
        path = _path_below(scope) if scope["type"] == "http" else None
        if path is None:
            await self._app(scope, receive, send)
            return
        try:
            await self._answer(path, scope, receive, send)
        except Rejected as rejected:
            await _send_json(send, rejected.status, {"detail": str(rejected)}, rejected.headers)

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_host(scope)
        method = scope["method"]
        if path == "/actions":
            _allow(method, b"POST")
            await _send_json(send, 200, {"done": await self._act(scope, receive)})
            return
        _allow(method, b"GET")
        if path == "/":
            await _send(send, 307, b"", [(b"location", b"../resilience")])
        elif path == "/data":
            async with self._viewing():
                await _send_json(send, 200, await self._data())
        elif path == "/events":
            await self._stream(receive, send)
        elif path in _FILES:
            name, kind = _FILES[path]
            await _send(send, 200, _read(name), [(b"content-type", kind)])
        else:
            raise Rejected(404, "There is no such page")

    def _check_host(self, scope: Scope) -> None:
        hosts = hosts_in(scope["headers"])
        if len(hosts) > 1:
            raise Rejected(400, "A request has one Host")
        allowed = self._registry.settings.status_hosts if self._hosts is None else self._hosts
        if hosts and not is_allowed_host(hosts[0], allowed or ()):
            raise Rejected(
                421,
                "This page does not answer under this name: add it to RESILIENCE_STATUS_HOSTS if "
                "it is yours",
            )

    @property
    def _token(self) -> str | None:
        if self._own_token is not None:
            return self._own_token
        secret = self._registry.settings.status_token
        return None if secret is None else secret.get_secret_value()

    # ------------------------------------------------------------------ data

    @contextlib.asynccontextmanager
    async def _viewing(self) -> AsyncIterator[asyncio.Event]:
        if self._observer.viewers >= _MOST_VIEWERS:
            raise Rejected(503, f"{_MOST_VIEWERS} pages are open: close one, and try again")
        async with self._observer.viewing() as news:
            yield news

    async def _data(self) -> dict[str, Any]:
        return {**await self._observer.snapshot(), "can_act": self._token is not None}

    async def _snapshot(self) -> _Encoded:
        """Return `_data`, encoded once for all viewers."""
        encoded, changes = self._encoded, self._observer.changes
        if encoded is None or time.monotonic() >= encoded.until or encoded.changes != changes:
            data = await self._data()
            event = b"data: " + json.dumps(data).encode() + b"\n\n"
            until = time.monotonic() + _FRESH
            self._encoded = encoded = _Encoded(until, changes, _without(data, _VOLATILE), event)
        return encoded

    async def _stream(self, receive: Receive, send: Send) -> None:
        """Send events until the viewer leaves, the process drains, or `_STREAM_LIFE` is over."""
        async with self._viewing() as news:
            disconnect = asyncio.ensure_future(_disconnected(receive))
            disconnect.add_done_callback(lambda _: news.set())
            try:
                await _begin_stream(send)
                await self._send_events(send, news, disconnect)
                async with asyncio.timeout(_SEND_TIMEOUT):
                    await send({"type": "http.response.body", "body": b""})
            except (TimeoutError, OSError):
                pass  # the viewer no longer reads
            finally:
                disconnect.cancel()
                await asyncio.wait({disconnect})

    async def _send_events(
        self, send: Send, news: asyncio.Event, disconnect: asyncio.Future[None]
    ) -> None:
        began = sent_at = time.monotonic()
        sent = None
        while not disconnect.done():
            news.clear()
            encoded, now = await self._snapshot(), time.monotonic()
            if encoded.lasting != sent or now >= sent_at + _HEARTBEAT:
                sent, sent_at = encoded.lasting, now
                async with asyncio.timeout(_SEND_TIMEOUT):
                    await send(
                        {"type": "http.response.body", "body": encoded.event, "more_body": True}
                    )
            if now >= began + _STREAM_LIFE or self._is_over():
                return
            await asyncio.sleep(_MIN_INTERVAL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL - _MIN_INTERVAL):
                    await news.wait()

    def _is_over(self) -> bool:
        """Whether the drain no longer waits for work: a viewer must not delay its end."""
        progress = drain_of(self._registry)
        if progress is None:
            return self._registry.gate.is_closed
        return progress.phase in {Phase.CANCELLING, Phase.CLOSING} or (
            progress.phase is Phase.DRAINING and not progress.in_flight
        )

    # ------------------------------------------------------------------ actions

    async def _act(self, scope: Scope, receive: Receive) -> str:
        check_token(scope["headers"], self._token)
        kinds = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
        if [kind.partition(b";")[0].strip().lower() for kind in kinds] != [b"application/json"]:
            raise Rejected(415, "The body must be application/json")
        return await act(read_action(await _body(receive)), self._registry)


def _path_below(scope: Scope) -> str | None:
    """The path below ``/resilience``; None for other paths."""
    path = route_path(scope)
    here, below = path[: len("/resilience")], path[len("/resilience") :]
    return below if here == "/resilience" and below[:1] in {"", "/"} else None


def _allow(method: str, allowed: bytes) -> None:
    if method.encode() != allowed:
        raise Rejected(405, f"Only {allowed.decode()} is allowed here", [(b"allow", allowed)])


@functools.cache
def _read(name: str) -> bytes:
    return Path(__file__).with_name("static").joinpath(name).read_bytes()


def _without(data: Any, names: tuple[str, ...]) -> Any:
    if isinstance(data, dict):
        return {name: _without(it, names) for name, it in data.items() if name not in names}
    return [_without(it, names) for it in data] if isinstance(data, list) else data


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Rejected(400, "The body broke off")
                body += bytes(message.get("body", b""))
                if len(body) > LARGEST_BODY:
                    raise Rejected(413, f"The body may have {LARGEST_BODY} bytes")
                if not message.get("more_body"):
                    return body
    except TimeoutError:
        raise Rejected(408, "The body took too long") from None


async def _begin_stream(send: Send) -> None:
    headers = [*_HEADERS, (b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"retry: 300\n\n", "more_body": True})


async def _send_json(
    send: Send, status: int, content: dict[str, Any], headers: Headers = ()
) -> None:
    await send_json(send, status, content, [*_HEADERS, *headers])


async def _send(send: Send, status: int, body: bytes, headers: Headers) -> None:
    await send_response(send, status, body, [*_HEADERS, *headers])
