"""An application whose work leaves marks, served by real servers in tests of draining.

``GET /<id>?<kind>=<seconds>`` begins work of that kind. Each piece leaves ``begun <id> <pid>`` in
the file of MARKS, and ``done <id> <pid>`` where it came to its end.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from typing import Any

from lightrag_resilience.integrations.asgi import DrainMiddleware

_untracked: set[asyncio.Task[None]] = set()


def mark(word: str, key: str) -> None:
    descriptor = os.open(os.environ["MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{word} {key} {os.getpid()}\n".encode())
    os.close(descriptor)


async def work(key: str, seconds: float) -> None:
    mark("begun", key)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        mark("cancelled", key)
        raise
    mark("done", key)


async def in_thread(key: str, seconds: float) -> None:
    mark("begun", key)

    def sleep() -> None:
        time.sleep(seconds)
        mark("done", key)

    await asyncio.to_thread(sleep)


def child(key: str, seconds: float) -> None:
    script = f"""
        sleep {seconds} &
        trap 'kill $!; echo "ended {key} $$" >> "$MARKS"; exit 1' TERM
        wait $! && echo "done {key} $$" >> "$MARKS"
    """
    process = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)  # noqa: S603
    assert app.coordinator is not None
    app.coordinator.track_process(process, key)
    mark("begun", key)


async def answer(send: Any, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def application(scope: Any, receive: Any, send: Any) -> None:
    key = scope.get("path", "").strip("/")
    if scope["type"] == "lifespan":
        await live(receive, send)
    elif scope["type"] == "websocket":
        await talk(key, receive, send)
    else:
        kind, _, number = scope["query_string"].decode().partition("=")
        seconds = float(number or 0)
        if kind == "stream":
            await stream(key, seconds, send)
            return
        await begin(kind, key, seconds)
        await answer(send, str(os.getpid()).encode())
        if kind == "after":  # as Starlette's BackgroundTasks do
            await work(key, seconds)


async def begin(kind: str, key: str, seconds: float) -> None:
    assert app.coordinator is not None
    if kind == "request":
        await work(key, seconds)
    elif kind == "task":
        app.coordinator.track(asyncio.create_task(work(key, seconds), name=key))
    elif kind == "untracked":
        _untracked.add(asyncio.create_task(work(key, seconds), name=key))
    elif kind == "thread":
        app.coordinator.track(asyncio.create_task(in_thread(key, seconds), name=key))
    elif kind == "child":
        child(key, seconds)
    elif kind == "blocked":
        mark("begun", key)
        time.sleep(seconds)  # noqa: ASYNC251 - what it is for
        mark("done", key)


async def stream(key: str, seconds: float, send: Any) -> None:
    mark("begun", key)
    await answer(send, b"part", more=True)
    for _ in range(4):
        await asyncio.sleep(seconds / 4)
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})
    mark("done", key)


async def live(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        mark("lifespan", message["type"].partition(".")[2])
        if message["type"] == "lifespan.shutdown":
            return


async def talk(key: str, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    mark("begun", key)
    while (await receive())["type"] != "websocket.disconnect":
        pass
    mark("done", key)


app = DrainMiddleware(application)
