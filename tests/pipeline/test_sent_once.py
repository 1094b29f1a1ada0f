"""A request that may have been carried out is sent again only where that does no harm.

Real clients speak to a real server, which counts the requests that it has read.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from lightrag_resilience import Policy
from lightrag_resilience.pipeline.guard import Guard

CLIENT_TIMEOUT = 0.3  # seconds, of the client's own
ATTEMPT_TIMEOUT = 0.3
LONG = 20.0
BODY = b"{}"

Post = Callable[[int, float], Any]


class Server:
    """Reads each request whole and then hangs up, or never answers it."""

    def __init__(self, *, stalls: bool) -> None:
        self.requests = 0
        self._stalls = stalls
        self._held: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(LONG)
        read = b""
        while BODY not in read.partition(b"\r\n\r\n")[2]:
            packet = connection.recv(4096)
            if not packet:
                connection.close()
                return
            read += packet
        self.requests += 1
        if self._stalls:
            self._held.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._held:
            connection.close()


@contextmanager
def server(*, stalls: bool) -> Iterator[Server]:
    with closing(Server(stalls=stalls)) as served:
        yield served


# ---------------------------------------------------------------------- the clients


def by_httpx(library: str) -> Post:
    async def post(port: int, seconds: float) -> None:
        module = pytest.importorskip(library)
        async with module.AsyncClient(timeout=seconds, trust_env=False, verify=False) as client:
            await client.post(f"http://127.0.0.1:{port}/", content=BODY)

    return post


def by_httpx_in_a_thread(library: str) -> Post:
    def post(port: int, seconds: float) -> None:
        module = pytest.importorskip(library)
        with module.Client(timeout=seconds, trust_env=False, verify=False) as client:
            client.post(f"http://127.0.0.1:{port}/", content=BODY)

    return post


async def by_aiohttp(port: int, seconds: float) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    total = aiohttp.ClientTimeout(total=seconds)
    async with aiohttp.ClientSession(timeout=total) as client:
        await client.post(f"http://127.0.0.1:{port}/", data=BODY)


def by_requests(port: int, seconds: float) -> None:
    requests = pytest.importorskip("requests")
    requests.post(f"http://127.0.0.1:{port}/", data=BODY, timeout=seconds)


def by_urllib3(port: int, seconds: float) -> None:
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.PoolManager(retries=False) as pool:
        pool.request("POST", f"http://127.0.0.1:{port}/", body=BODY, timeout=seconds)


def by_urllib3_with_retries_of_its_own(port: int, seconds: float) -> None:
    """It repeats no POST by itself, but wraps its errors otherwise."""
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.PoolManager() as pool:
        pool.request("POST", f"http://127.0.0.1:{port}/", body=BODY, timeout=seconds)


def by_http_client(port: int, seconds: float) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)) as client:
        client.request("POST", "/", BODY)
        client.getresponse().read()


def by_urllib_request(port: int, seconds: float) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", BODY, method="POST")
    with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
        answer.read()


def by_a_wrapper_of_an_unknown_class(port: int, seconds: float) -> None:
    class StoreError(Exception): ...

    try:
        by_urllib_request(port, seconds)
    except OSError as error:
        raise StoreError("m") from error


def by_opensearch(port: int, seconds: float) -> None:
    module = pytest.importorskip("opensearchpy")
    client = module.OpenSearch(
        [{"host": "127.0.0.1", "port": port}], timeout=seconds, max_retries=0
    )
    with closing(client):
        client.transport.perform_request("POST", "/i/_delete_by_query", body={})


def by_opensearch_over_requests(port: int, seconds: float) -> None:
    module = pytest.importorskip("opensearchpy")
    client = module.OpenSearch(
        [{"host": "127.0.0.1", "port": port}],
        timeout=seconds,
        max_retries=0,
        connection_class=module.RequestsHttpConnection,
    )
    with closing(client):
        client.transport.perform_request("POST", "/i/_delete_by_query", body={})


async def by_async_opensearch(port: int, seconds: float) -> None:
    module = pytest.importorskip("opensearchpy")
    client = module.AsyncOpenSearch(
        [{"host": "127.0.0.1", "port": port}], timeout=seconds, max_retries=0
    )
    async with client:
        await client.transport.perform_request("POST", "/i/_delete_by_query", body={})


def by_elasticsearch(port: int, seconds: float) -> None:
    module = pytest.importorskip("elasticsearch")
    client = module.Elasticsearch(
        f"http://127.0.0.1:{port}", request_timeout=seconds, max_retries=0
    )
    with closing(client):
        client.perform_request(
            "POST", "/i/_doc", body={}, headers={"content-type": "application/json"}
        )


CLIENTS: dict[str, Post] = {
    "httpx": by_httpx("httpx"),
    "httpx2": by_httpx("httpx2"),
    "httpx, sync": by_httpx_in_a_thread("httpx"),
    "httpx2, sync": by_httpx_in_a_thread("httpx2"),
    "aiohttp": by_aiohttp,
    "requests": by_requests,
    "urllib3": by_urllib3,
    "urllib3 that retries": by_urllib3_with_retries_of_its_own,
    "http.client": by_http_client,
    "urllib.request": by_urllib_request,
    "a wrapper": by_a_wrapper_of_an_unknown_class,
    "opensearch-py": by_opensearch,
    "opensearch-py over requests": by_opensearch_over_requests,
    "opensearch-py, async": by_async_opensearch,
    "elasticsearch": by_elasticsearch,
}
HOW = ["stalled: client's timeout", "stalled: attempt timeout", "cut"]


def sent(post: Post, how: str, *, idempotent: bool) -> int:
    """How often the server read the request."""
    own = ATTEMPT_TIMEOUT if how == "stalled: attempt timeout" else LONG
    clients = CLIENT_TIMEOUT if how == "stalled: client's timeout" else LONG
    policy = Policy.storage(attempt_timeout=own, total_timeout=LONG, idempotent=idempotent)

    async def call(port: int) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011 - each client has its own
            await Guard("storage.orders", policy).call(post, port, clients)

    with server(stalls=how != "cut") as served:
        asyncio.run(call(served.port))
        return served.requests


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_post_that_may_have_been_carried_out_is_sent_once(client: str, how: str) -> None:
    assert sent(CLIENTS[client], how, idempotent=False) == 1


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("client", CLIENTS)
def test_what_may_be_repeated_is_sent_again(client: str, how: str) -> None:
    assert sent(CLIENTS[client], how, idempotent=True) == Policy.storage().retry.attempts
