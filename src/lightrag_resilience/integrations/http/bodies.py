"""Bodies of responses: streamed under a guard, or read ahead if the status is an error."""

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

_MAX_ERROR_BODY = 64 * 1024  # bytes
_END_OF_EVENTS = b"[DONE]"
_TAIL = 32  # bytes; enough for the end marker and line ends
_GZIP_OR_DEFLATE = 47  # window bits with which zlib detects the format


class Source(AsyncIterator[bytes]):
    """The chunks of a response from the wire; closing it frees the connection."""

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
        """Whether the last event was OpenAI's end marker, after which SDKs read no further."""
        return self._tail.rstrip().endswith(_END_OF_EVENTS)

    async def aclose(self) -> None:
        """Return the connection to its pool; one whose body was not read to its end is closed."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            # A running generator cannot be closed: another task waits for its next chunk.
            if inspect.isasyncgen(self._chunks) and not self._chunks.ag_running:
                await self._chunks.aclose()
        finally:
            await self._stream.aclose()


class _Body:
    """The body for the client. A second iteration continues where the first one stopped."""

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
    """A body class for one library, whose client accepts only its own class."""
    return type("GuardedBody", (_Body, library.AsyncByteStream), {})


def guarded_body(library: Any, stream: GuardedStream[bytes], source: Source) -> Any:
    """The body of a response whose guarded call lasts until the end of the body."""

    async def end() -> None:
        await (close_complete(stream) if source.is_complete else stream.aclose())

    return _class_for(library)(stream, end, library)


async def read_ahead(library: Any, source: Source) -> tuple[bytes, Any]:
    """The beginning of an error's body, and a body that the client can still read in full.

    Up to 64 KiB are read, which frees the connection of a shorter body; the rest of a longer one
    stays on the wire.
    """
    read = b""
    try:
        async for chunk in source:
            read += chunk
            if len(read) > _MAX_ERROR_BODY:
                whole = _class_for(library)(_continued(read, source), source.aclose, library)
                return read, whole
    except BaseException:
        await source.aclose()
        raise
    await source.aclose()
    return read, library.ByteStream(read)


async def _continued(read: bytes, source: Source) -> AsyncIterator[bytes]:
    yield read
    async for chunk in source:
        yield chunk


def parsed(read: bytes, encoding: str) -> Any:
    """The JSON in a body; None if it is not JSON, or longer than 64 KiB when decompressed."""
    try:
        if encoding in {"gzip", "deflate"}:
            decompressor = zlib.decompressobj(_GZIP_OR_DEFLATE)
            read = decompressor.decompress(read, _MAX_ERROR_BODY)
        return json.loads(read)
    except (ValueError, RecursionError, zlib.error):
        return None
