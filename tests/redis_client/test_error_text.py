"""Errors of Redis are described in a clause that shows no secret."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time

import pytest
import redis
from redis.exceptions import RedisError

from lightrag_resilience.redis_client.error_text import describe_redis_error
from lightrag_resilience.testing.redis_server import RedisServer
from support.redis_clients import (
    SECRET,
    admin,
    client_of,
    every_script,
    wrong,
)

pytestmark = pytest.mark.anyio


async def test_a_rejected_password_or_user_is_described(address: str) -> None:
    assert await wrong(f"redis://:secret@{address}") == "the user or the password is refused"
    assert (
        await wrong(f"redis://secret:{SECRET}@{address}") == "the user or the password is refused"
    )
    assert await wrong(f"redis://{address}") == "it asks for a password"


async def test_missing_rights_are_described(address: str) -> None:
    assert await wrong(f"redis://powerless:pw@{address}") == "this user may not run client|setname"
    async with client_of(f"redis://worker:pw@{address}") as client:
        with pytest.raises(RedisError) as caught:
            await every_script(client, prefix="not:")
        assert describe_redis_error(caught.value) == "this user may not use these keys"
        with pytest.raises(RedisError) as caught:
            await client.publish("not", "1")
        assert describe_redis_error(caught.value) == "this user may not use these channels"


async def test_a_server_that_does_not_exist_is_described() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert await wrong(f"redis://:secret@127.0.0.1:{port}") == "nothing answers at this address"
    assert await wrong("redis://:secret@no.such.host.invalid") == "its host is not known"


async def test_a_server_that_hangs_is_described_within_the_timeout() -> None:
    with RedisServer() as hung:
        async with client_of(hung.url) as client:
            await client.ping()
            hung.pause()
            began = time.monotonic()
            with pytest.raises(RedisError) as caught:
                await client.ping()
            assert time.monotonic() - began < 5.0
        assert describe_redis_error(caught.value) == "no answer within 1 s"
        assert await wrong(hung.url) == "no answer within 1 s"


async def test_a_server_that_takes_no_writes_is_described() -> None:
    with RedisServer("--maxmemory", "2mb", "--databases", "1") as full, admin(full) as boss:
        async with client_of(full.url) as client:
            boss.config_set("maxmemory", "1")
            with pytest.raises(RedisError) as caught:
                await every_script(client)
            assert describe_redis_error(caught.value) == "its memory is full"
            boss.config_set("maxmemory", "0")
            boss.replicaof("127.0.0.1", "1")
            with pytest.raises(RedisError) as caught:
                await every_script(client)
            assert describe_redis_error(caught.value) == "this is a replica that takes no writes"
        assert "no database" in await wrong(full.url[:-1] + "7")
        assert "no cluster" in await wrong(full.url.replace("redis:", "redis+cluster:")[:-2])


@pytest.mark.parametrize(
    ("error", "clause"),
    [
        (redis.exceptions.BusyLoadingError("Redis is loading the dataset"), "loading"),
        (redis.exceptions.ClusterDownError("The cluster is down"), "the cluster is down"),
        (redis.exceptions.ResponseError("MISCONF Redis is configured to save"), "its disk"),
        (redis.exceptions.ConnectionError("max number of clients reached"), "as many clients"),
        (redis.exceptions.ResponseError("unknown command `HELLO`, with args"), "Redis 6.2"),
        (redis.exceptions.ResponseError("x script: y, on @user_script:1."), "a script fails"),
        (TimeoutError(), "no answer"),
        (ssl.SSLCertVerificationError("CERTIFICATE_VERIFY_FAILED: secret"), "not trusted"),
        (ValueError("secret"), "an error of kind ValueError"),
        (asyncio.CancelledError(), "an error of kind CancelledError"),
    ],
)
def test_each_error_has_its_clause(error: BaseException, clause: str) -> None:
    assert clause in describe_redis_error(error)
    assert "secret" not in describe_redis_error(error)


def test_the_cause_of_an_error_is_described() -> None:
    outer = redis.exceptions.ConnectionError("secret")
    outer.__cause__ = socket.gaierror(-2, "Name or service not known")
    assert describe_redis_error(outer) == "its host is not known"
