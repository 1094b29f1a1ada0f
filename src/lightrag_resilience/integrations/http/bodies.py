"""Bodies of responses: passed on under a guard, or read so far as an error's body is looked at."""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any, Self

from lightrag_resilience.errors import AttemptTimeoutError
from lightrag_resilience.streams.guarded_stream import GuardedStream, close_complete

__all__ = ["Source", "guarded_body", "parsed", "read_ahead"]

LARGEST_ERROR = 64 * 1024  # bytes
_END_OF_EVENTS = b"[DONE]"
_TAIL = 32  # bytes: the end marker and line ends
_GZIP_OR_DEFLATE = 47  # zlib's window bits for both


class Source(AsyncIterator[bytes]):
    """The chunks of a response as they come from the wire; closing it frees the connection."""

    def __init__(self, response: Any) -> None:
        self._stream = response.stream
        self._chunks: Any = aiter(response.stream)
        self._is_events = response.headers.get("content-type", "").startswith("text/event-stream")
        self._tail = b""
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk: bytes = await anext(self._chunks)
        if self._is_events:
            self._tail = (self._tail + chunk[-_TAIL:])[-_TAIL:]
        return chunk

    @property
    def is_complete(self) -> bool:
        """Whether the last event was OpenAI's end marker: SDKs read no further."""
        return self._tail.rstrip().endswith(_END_OF_EVENTS)

    async def aclose(self) -> None:
        """Give the connection back; a body not read to its end costs the connection."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            # It runs where one task closes a response that another one waits for.
            if inspect.isasyncgen(self._chunks) and not self._chunks.ag_running:
                await self._chunks.aclose()
        finally:
            await self._stream.aclose()


class _Body:
    """A body as a client takes it: iterating again goes on where the last iteration stopped."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        end: Callable[[], Awaitable[None]],
        library: Any,
    ) -> None:
        self._chunks = chunks
        self._end = end
        self._library = library

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield chunk
        except AttemptTimeoutError as error:
            raise self._library.ReadTimeout(str(error)) from error

    async def aclose(self) -> None:
        await self._end()


@lru_cache(maxsize=8)
def _class_for(library: Any) -> Any:
    """A client takes no bodies but those of its own library's class."""
    return type("GuardedBody", (_Body, library.AsyncByteStream), {})


def guarded_body(library: Any, stream: GuardedStream[bytes], source: Source) -> Any:
    """The body of a response whose call goes on to its end."""

    async def end() -> None:
        await (close_complete(stream) if source.is_complete else stream.aclose())

    return _class_for(library)(stream, end, library)


async def read_ahead(library: Any, source: Source) -> tuple[bytes, Any]:
    """The beginning of an error's body, and a body that the client can still read whole.

    One of up to 64 KiB is read to its end, which frees its connection; the rest of a longer one
    stays on the wire.
    """
    read = b""
    try:
        async for chunk in source:
            read += chunk
            if len(read) > LARGEST_ERROR:
                whole = _class_for(library)(_and_then(read, source), source.aclose, library)
                return read, whole
    except BaseException:
        await source.aclose()
        raise
    await source.aclose()
    return read, library.ByteStream(read)


async def _and_then(read: bytes, source: Source) -> AsyncIterator[bytes]:
    yield read
    async for chunk in source:
        yield chunk


def parsed(read: bytes, encoding: str) -> Any:
    """The JSON in an error's body; None where it is none, or longer than 64 KiB once unpacked."""
    try:
        if encoding in {"gzip", "deflate"}:
            unpacking = zlib.decompressobj(_GZIP_OR_DEFLATE)
            read = unpacking.decompress(read, LARGEST_ERROR)
        return json.loads(read)
    except (ValueError, RecursionError, zlib.error):
        return None
