"""Requests to MinerU and Docling: upload a file, ask until it is parsed, download the result.

Each is a guarded call. Questions and downloads wait for a parser that is out of reach and are then
repeated as they are: a file that a parser has accepted is not uploaded again for that.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import zipfile
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import httpx

from lightrag_resilience.composition.wait_for_recovery import Patience
from lightrag_resilience.failures.classifier import Failure, classify, is_recognized
from lightrag_resilience.failures.kinds import FATAL, TRANSIENT, UNKNOWN
from lightrag_resilience.integrations.lightrag.compat import largest_download
from lightrag_resilience.integrations.lightrag.work.context import (
    call_guarded,
    current_work,
    note_failure,
)
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.recovery_probe import Probe

__all__ = ["GuardedHttpx", "Parse", "health_probe"]

_log = logging.getLogger("lightrag_resilience")

_MOST_UPLOADS = 3  # of a file whose parser forgets it
_FIRST_ERROR = 400
_GONE = frozenset({404, 410})
_LARGEST_CHECKED = 1024 * 1024  # bytes of JSON; parsing more of it would block the event loop
_DOCUMENT = ("document", "schema_name", "body", "texts", "tables")
_NAMES = {
    "POST": ("task_id", "id", "code", "data"),
    "GET": ("status", "task_status", "code", "data", *_DOCUMENT),
}
"""What LightRAG looks for in a JSON answer: to an upload, and to a question or a download."""
_UPLOADS = ("/tasks", "/v1/convert/file/async")
"""The paths to which MinerU's and Docling's own servers take files; beside each is ``/health``."""


class Parse:
    """One document with its parser.

    Args:
        guard: The parser's guard.
        patience: For how long its requests wait for the parser, together; None: not at all.
        on_upload: Called with the address of each upload.
    """

    def __init__(
        self, guard: Guard, patience: Patience | None, on_upload: Callable[[httpx.URL], None]
    ) -> None:
        self._guard = guard
        self._patience = patience
        self._on_upload = on_upload
        self._is_accepted = self._is_lost = False  # by the parser, which may forget a file
        self._failure: Failure | None = None  # of the last request

    async def run(self, download: Callable[[], Awaitable[None]]) -> None:
        """Upload the file and get its result; again, three times in all, if the parser loses it.

        Raises:
            Exception: What LightRAG's download raised at last.
        """
        guard, once = self._guard, functools.partial(self._upload, download)
        token = _current.set(self)
        try:
            for left in reversed(range(_MOST_UPLOADS)):
                error = await call_guarded(guard, once, patience=self._patience)
                if error is None:
                    return
                if not (self._is_lost and left):
                    note_failure(error, guard.name, current_work.get())
                    raise error
                _log.warning("%s has lost a file it had accepted: it gets it again", guard.name)
        finally:
            _current.reset(token)

    async def _upload(self, download: Callable[[], Awaitable[None]]) -> Exception | None:
        """Until the file is accepted errors are raised; those after it have been waited for."""
        self._is_accepted = self._is_lost = False
        self._failure = None
        try:
            await download()
        except Exception as error:
            self._judge(error)
            if not self._is_accepted:
                raise
            return error
        return None

    async def send(
        self, request: httpx.Request, send: Callable[[], Awaitable[httpx.Response]]
    ) -> httpx.Response:
        """Send a request under the guard; the answer has its whole body.

        Raises:
            CallRejected: It was not sent.
            httpx.RequestError: What the last attempt raised. An answer that makes no sense is a
                `DecodingError`, since it did not come from the parser.
        """
        self._failure = UNKNOWN
        if request.method == "GET":
            self._is_accepted = True
        else:
            self._on_upload(request.url)
        guard, idempotent = self._guard, True if request.method == "GET" else None
        # Any other body is read from a file: the whole upload is repeated, with a new file.
        once = not isinstance(request.stream, httpx.ByteStream)

        async def attempt() -> httpx.Response:
            return await _whole(request, await send())

        async def call() -> httpx.Response:
            return await guard.run(attempt, (), {}, once=once, idempotent=idempotent)

        answer: httpx.Response
        try:
            if once:
                answer = await call()
            else:
                patience = self._patience
                answer = await call_guarded(guard, call, idempotent=idempotent, patience=patience)
        except httpx.HTTPStatusError as error:
            self._failure = classify(error)
            self._is_lost = self._is_accepted and error.response.status_code in _GONE
            return error.response  # LightRAG says what is in it
        except Exception as error:
            self._failure = classify(error)
            raise
        self._failure = None
        return answer

    def _judge(self, error: Exception) -> None:
        """Give an error of LightRAG's client the verdict that its last request calls for.

        It raises the same RuntimeError for an outage and for a file that cannot be parsed.
        """
        if not is_recognized(error):
            verdict = TRANSIENT if self._is_lost else self._failure or FATAL
            vars(error)["__resilience_failure__"] = verdict


_current: ContextVar[Parse | None] = ContextVar("lightrag_resilience_parse", default=None)


class _Client(httpx.AsyncClient):
    """A client whose requests are those of the current parse, if there is one."""

    async def send(
        self, request: httpx.Request, *, stream: bool = False, **options: Any
    ) -> httpx.Response:
        parse = _current.get()
        if parse is None:
            return await super().send(request, stream=stream, **options)
        answer = await parse.send(
            request, functools.partial(super().send, request, stream=True, **options)
        )
        if not stream:
            await answer.aread()
        return answer


class GuardedHttpx:
    """The module httpx as LightRAG's clients of parsers see it."""

    AsyncClient = _Client

    def __getattr__(self, name: str) -> Any:
        return getattr(httpx, name)


def health_probe(upload: httpx.URL) -> Probe | None:
    """A probe of the server that takes files at an address; None if it is not known to have one.

    MinerU's official service has none.
    """
    path = next((path for path in _UPLOADS if upload.path.endswith(path)), None)
    if path is None:
        return None
    url = upload.copy_with(path=upload.path.removesuffix(path) + "/health", query=None)

    async def probe() -> None:
        async with httpx.AsyncClient(timeout=None) as client:  # noqa: S113 - the prober ends it
            answer = await client.get(url)
        answer.raise_for_status()
        if "html" in answer.headers.get("content-type", ""):
            raise httpx.DecodingError("The health of a parser is no page", request=answer.request)

    return probe


# ---------------------------------------------------------------------- answers


async def _whole(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    """An answer with its body, so that a connection that breaks off is a failed attempt.

    Raises:
        httpx.HTTPStatusError: Its status is an error.
        httpx.DecodingError: It is no parser's answer.
    """
    limit, parts, size = largest_download(), [], 0
    body: Any = response.aiter_raw()
    try:
        async with contextlib.aclosing(body) as chunks:
            async for chunk in chunks:
                parts.append(chunk)
                size += len(chunk)
                if limit is not None and size > limit:
                    break  # LightRAG refuses it, and says why
    finally:
        await response.aclose()
    answer = httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=httpx.ByteStream(b"".join(parts)),
        request=request,
    )
    status = answer.status_code
    if status >= _FIRST_ERROR:
        raise httpx.HTTPStatusError(f"HTTP {status}", request=request, response=answer)
    # LightRAG accepts no compressed download, and does not decompress it to see that.
    is_plain = answer.headers.get("content-encoding", "identity") == "identity"
    if answer.is_success and (is_plain or size <= _LARGEST_CHECKED):
        read = await answer.aread()
        if not _makes_sense(request.method, read):
            what = f"HTTP {status} with {len(read)} bytes"
            raise httpx.DecodingError(f"{what} is no answer of a parser", request=request)
    return answer


def _makes_sense(method: str, body: bytes) -> bool:
    """Whether an answer may be a parser's, and not a proxy's page."""
    names = _NAMES.get(method)
    if names is None:  # a file was stored: the status says it all
        return True
    if method == "GET" and zipfile.is_zipfile(io.BytesIO(body)):
        return True
    if len(body) > _LARGEST_CHECKED:
        return body.lstrip()[:1] == b"{"
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and any(found.get(name, "") not in (None, "") for name in names)
