"""ASGI's types, a response in one call, and what a scope says."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

__all__ = [
    "Application",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "connection_close_header",
    "route_path",
    "send_json",
    "send_response",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


async def send_response(send: Send, status: int, body: bytes = b"", headers: Headers = ()) -> None:
    """Send a whole response; its ``content-length`` is added."""
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [*headers, length]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


async def send_json(
    send: Send, status: int, content: Mapping[str, Any], headers: Headers = ()
) -> None:
    """Send a whole response of JSON."""
    headers = [*headers, (b"content-type", b"application/json")]
    await send_response(send, status, json.dumps(content).encode(), headers)


def connection_close_header(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The header that makes a client open a new connection, to another process; HTTP/2 has none."""
    is_http_1 = scope.get("http_version", "1.1").startswith("1")
    return [(b"connection", b"close")] if is_http_1 else []


def route_path(scope: Scope) -> str:
    """The path by which the application routes: without the ``root_path`` of its mount.

    ASGI puts ``root_path`` in front of ``path``, for ``uvicorn --root-path`` as for a ``Mount``.
    Some servers leave it out of ``path``, which is then the route's path already.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    below = path.removeprefix(root)
    if below and not below.startswith("/"):  # the root is no whole segment of it: /rag of /ragout
        return path
    return "/" + below.lstrip("/")
