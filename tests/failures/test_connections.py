"""What errors of connections and answers mean: httpx, aiohttp and redis, over real sockets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio
from redis.retry import Retry

from lightrag_resilience.failures.classifier import Failure, FailureKind, classify
from support.failures import (
    FATAL,
    LIBRARIES,
    LOCAL,
    THROTTLED,
    TRANSIENT,
    UNKNOWN,
    error_of,
)
from support.ports import free_port

# ---------------------------------------------------------------------- httpx, httpx2


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, TRANSIENT) for name in ("ConnectTimeout", "ConnectError", "ProxyError")),
        ("PoolTimeout", LOCAL),
        *((name, UNKNOWN) for name in ("ReadTimeout", "WriteTimeout", "ReadError", "WriteError")),
        *((name, UNKNOWN) for name in ("CloseError", "RemoteProtocolError", "DecodingError")),
        *((name, FATAL) for name in ("UnsupportedProtocol", "LocalProtocolError", "InvalidURL")),
        ("TooManyRedirects", FATAL),
    ],
)
def test_httpx_errors_by_whether_a_request_was_sent(
    library: str, name: str, expected: Failure
) -> None:
    error = getattr(pytest.importorskip(library), name)("m")
    assert classify(error) == expected


@asynccontextmanager
async def server(answer: bytes | None) -> Any:
    """A port that answers each request with `answer`, hangs up on b"", or is silent on None."""
    quiet = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while packet := await reader.read(4096):
            if answer is None:
                await quiet.wait()
            if not answer:
                break
            # Redis clients may send several commands in one packet; each begins with a star.
            writer.write(answer * max((b"\n" + packet).count(b"\n*"), 1))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        quiet.set()
        listening.close()


async def httpx_get(library: str, port: int) -> Exception:
    module = pytest.importorskip(library)
    async with module.AsyncClient(timeout=0.2, trust_env=False) as client:
        return await error_of(client.get(f"http://127.0.0.1:{port}/"))


async def aiohttp_get(library: str, port: int) -> Exception:
    module = pytest.importorskip(library)
    timeout = module.ClientTimeout(sock_read=0.2)
    async with module.ClientSession(timeout=timeout, raise_for_status=True) as client:
        return await error_of(client.get(f"http://127.0.0.1:{port}/"))


async def redis_ping(_: str, port: int) -> Exception:
    client = redis.asyncio.Redis(port=port, socket_timeout=0.2, retry=NO_RETRY, protocol=2)
    try:
        return await error_of(client.ping())
    finally:
        await client.aclose()


NO_RETRY: Any = Retry(redis.backoff.NoBackoff(), 0)
CLIENTS = [
    *((httpx_get, library) for library in LIBRARIES),
    (aiohttp_get, "aiohttp"),
    (redis_ping, "redis"),
]


@pytest.mark.parametrize(("get", "library"), CLIENTS)
def test_a_refused_connection_is_passing_for_every_client(get: Any, library: str) -> None:
    assert classify(asyncio.run(get(library, free_port()))) == TRANSIENT


@pytest.mark.parametrize("answer", [b"", None])
@pytest.mark.parametrize(("get", "library"), CLIENTS)
def test_a_lost_connection_after_a_request_is_of_unknown_outcome(
    get: Any, library: str, answer: bytes | None
) -> None:
    async def call() -> Exception:
        async with server(answer) as port:
            error: Exception = await get(library, port)
            return error

    assert classify(asyncio.run(call())) == UNKNOWN


# ---------------------------------------------------------------------- aiohttp


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"503 Busy\r\nRetry-After: 9", Failure(FailureKind.TRANSIENT, 9.0)),
        (b"429 Slow\r\nretry-after-ms: 250", Failure(FailureKind.THROTTLED, 0.25)),
        (b"401 No", FATAL),
    ],
)
def test_aiohttp_keeps_the_headers_on_the_error(answer: bytes, expected: Failure) -> None:
    async def call() -> Exception:
        async with server(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % answer) as port:
            return await aiohttp_get("aiohttp", port)

    assert classify(asyncio.run(call())) == expected


def test_aiohttps_deprecated_attribute_is_not_read(
    recwarn: pytest.WarningsRecorder,
) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    assert classify(aiohttp.ClientResponseError(None, (), status=0)) == UNKNOWN
    assert classify(aiohttp.ClientResponseError(None, (), status=429)) == THROTTLED
    assert not recwarn.list


# ---------------------------------------------------------------------- redis


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"-NOAUTH Authentication required.", FATAL),
        (b"-WRONGPASS invalid username-password pair", FATAL),
        (b"-NOPERM no permissions to run the command", FATAL),
        (b"-WRONGTYPE Operation against a key holding the wrong kind of value", FATAL),
        (b"-LOADING Redis is loading the dataset in memory", TRANSIENT),
        (b"-READONLY You can't write against a read only replica.", TRANSIENT),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", TRANSIENT),
        (b"-CLUSTERDOWN The cluster is down", TRANSIENT),
        (b"-TRYAGAIN Multiple keys request during rehashing", TRANSIENT),
    ],
)
def test_error_replies_of_a_redis_server(reply: bytes, expected: Failure) -> None:
    async def call() -> Exception:
        async with server(reply + b"\r\n") as port:
            return await redis_ping("redis", port)

    assert classify(asyncio.run(call())) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis.exceptions.AuthenticationError("m"), FATAL),
        (redis.exceptions.AuthorizationError("m"), FATAL),
        (redis.exceptions.WatchError("m"), FATAL),
        (redis.exceptions.LockError("m"), FATAL),
        (redis.exceptions.MaxConnectionsError("m"), LOCAL),
        (redis.exceptions.ConnectionError("No connection available."), LOCAL),
        (redis.exceptions.ConnectionError("max number of clients reached"), TRANSIENT),
        (redis.exceptions.TimeoutError("Timeout connecting to server"), TRANSIENT),
        (redis.exceptions.TimeoutError("Timeout reading from socket"), UNKNOWN),
        (redis.exceptions.InvalidResponse("m"), UNKNOWN),
    ],
)
def test_errors_of_redis_py_itself(error: Exception, expected: Failure) -> None:
    assert classify(error) == expected
