"""A transport that answers as a test says, on any clock, and guards to put before it."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import Settings

__all__ = ["URL", "Answer", "answers", "new_guards", "wire"]

URL = "http://provider.test/v1"


class Answer:
    """One answer. Of the chunks, a number waits so many seconds, an exception is raised."""

    def __init__(self, status: int = 200, *chunks: Any, **headers: str) -> None:
        self.status = status
        self.chunks = chunks or (b"whole",)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.read = self.ended = self.closed = 0


class _Stream:
    """The body of an answer; with a library's class it is one of that library's streams."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.answer.ended:
            raise RuntimeError("what came from the wire cannot be read again")
        try:
            for chunk in self.answer.chunks:
                if isinstance(chunk, float):
                    await asyncio.sleep(chunk)
                elif isinstance(chunk, Exception):
                    raise chunk
                else:
                    self.answer.read += 1
                    yield chunk
        finally:
            self.answer.ended += 1

    async def aclose(self) -> None:
        self.answer.closed += 1


class _Transport:
    """Keeps, for each request, when it came, its body and its time limits."""

    library: Any
    steps: tuple[Any, ...]

    def __init__(self) -> None:
        self.at: list[float] = []
        self.bodies: list[bytes] = []
        self.limits: list[dict[str, float | None]] = []
        self.entered = self.closed = 0

    async def __aenter__(self) -> Any:
        self.entered += 1
        return self

    async def aclose(self) -> None:
        self.closed += 1

    async def handle_async_request(self, request: Any) -> Any:
        step = self.steps[min(len(self.at), len(self.steps) - 1)]
        self.at.append(asyncio.get_running_loop().time())
        self.bodies.append(b"".join([part async for part in request.stream]))
        self.limits.append(request.extensions["timeout"])
        if isinstance(step, Callable):  # type: ignore[arg-type]
            step = await step(request)
        if isinstance(step, Exception):
            raise step
        if not isinstance(step, Answer):
            return step
        return self.respond(step)

    def respond(self, answer: Answer) -> Any:
        answer.ended = 0
        body: Any = type("Stream", (_Stream, self.library.AsyncByteStream), {})
        return self.library.Response(answer.status, headers=answer.headers, stream=body(answer))


def answers(library: Any, *steps: Any) -> Any:
    """A transport of a library that takes its steps one a request; the last is for all further.

    A step is an `Answer`, an exception, a response made by the test, or a coroutine function.
    """
    own = {"library": library, "steps": steps}
    return type("Transport", (_Transport, library.AsyncBaseTransport), own)()


def wire(library: Any, *args: Any, **options: Any) -> Any:
    """A client of a library whose requests go through a `ResilientTransport`."""
    module = importlib.import_module(f"lightrag_resilience.integrations.{library.__name__}")
    options.setdefault("registry", new_guards())
    timeout = options.pop("timeout", 10.0)
    return library.AsyncClient(
        transport=module.ResilientTransport(*args, **options), timeout=timeout
    )


def new_guards() -> Guards:
    """Guards of a test's own, by the running loop's clock."""
    return Guards(settings=Settings(), clock=asyncio.get_running_loop().time)
