"""Clients of one real server, with passwords, rights and sockets."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from lightrag_resilience.config.redis_url import redis_location
from lightrag_resilience.redis_client.error_text import describe_redis_error
from lightrag_resilience.testing.redis_server import RedisServer
from support.redis_clients import (
    SECRET,
    admin,
    client_of,
    every_script,
    receives_a_forced_state,
    until,
    wrong,
)

pytestmark = pytest.mark.anyio


async def test_a_client_with_a_password_runs_every_script(address: str) -> None:
    async with (
        client_of(f"redis://:{SECRET}@{address}/1") as client,
        client_of(f"redis://default:{SECRET}@{address}/1") as other,
    ):
        await every_script(client)
        await receives_a_forced_state(client, other)


@pytest.mark.redis
async def test_a_client_of_a_unix_socket_runs_every_script(secured: RedisServer) -> None:
    with admin(secured, password="se:cr et") as client:  # noqa: S106
        path = client.config_get("unixsocket")["unixsocket"]
    async with client_of(f"unix://:{SECRET}@{path}?db=2") as client:
        await every_script(client)
    assert await wrong(f"unix://{path}.not") == "there is no socket of this path"


@pytest.mark.redis
async def test_the_error_of_a_path_that_is_no_socket_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, clause in {
        tmp_path / "none": "there is no socket of this path",
        tmp_path / "none" / "deeper": "there is no socket of this path",
        tmp_path / "file" / "deeper": "there is no socket of this path",
        tmp_path / "file": "nothing listens at this socket",
        tmp_path: "nothing listens at this socket",
        tmp_path / ("x" * 120): "the path of its socket is too long",
    }.items():
        assert await wrong(f"unix://{path}") == clause
    with_tls = await wrong("rediss://127.0.0.1:1?ssl_ca_certs=/none.pem")
    assert with_tls in {
        "a file that an ssl_ option names cannot be read",
        "nothing answers at this address",
    }


async def test_the_error_of_a_server_that_is_no_sentinel_says_so(address: str) -> None:
    text = await wrong(f"redis+sentinel://{address}/service?sentinel_password={SECRET}")
    assert text == "this is no Sentinel: see redis://"


def test_the_error_text_names_the_address_without_its_secrets() -> None:
    error = ConnectionRefusedError("Connection refused")
    for url, location in {
        "redis://user:secret@redis:6380/1": "redis:6380",
        "rediss://:secret@[::1]": "::1:6379",
        "unix://:secret@/run/redis.sock": "/run/redis.sock",
        "redis+sentinel://:secret@a,b:2/service?sentinel_password=secret": "a:26379, b:2",
        "redis+cluster://:secret@a:1,b:2": "a:1, b:2",
    }.items():
        assert redis_location(url) == location
        assert describe_redis_error(error, location) == f"nothing answers at {location}"
    assert redis_location("redis://:secret@") == ""
    assert len(describe_redis_error(error, "host:6379, " * 100)) < 260


@pytest.mark.redis
async def test_the_acl_rules_suffice_for_every_script(secured: RedisServer, address: str) -> None:
    with admin(secured, password="se:cr et") as boss:  # noqa: S106
        boss.acl_log_reset()
        async with client_of(f"redis://worker:pw@{address}/3") as client:
            await every_script(client)
            await receives_a_forced_state(client, client)
        assert boss.acl_log() == []


async def test_the_acl_rules_allow_no_other_commands(address: str) -> None:
    async with client_of(f"redis://worker:pw@{address}") as client:
        for words in ("GET other", "KEYS *", "FLUSHALL", "CONFIG GET *", "PUBLISH other 1"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await client.execute_command(*words.split())


async def test_a_client_connects_on_first_use_and_names_itself(secured: RedisServer) -> None:
    with admin(secured, password="se:cr et") as boss:  # noqa: S106
        async with client_of(f"redis://:{SECRET}@127.0.0.1:{secured.port}") as client:
            assert "lightrag-resilience" not in str(boss.client_list())
            await client.ping()
            assert "lightrag-resilience" in str(boss.client_list())
        until(lambda: "lightrag-resilience" not in str(boss.client_list()))
