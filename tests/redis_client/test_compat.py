"""Contract tests: each private or changing part of redis-py is as `compat` expects it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from redis._parsers import AsyncCommandsParser
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError

from lightrag_resilience.redis_client.client import make_client, needed_rights
from lightrag_resilience.redis_client.compat import (
    IMPLICIT_COMMANDS,
    SENTINEL_OPTIONS,
    StaticKeyParser,
    close_all_nodes,
    close_sentinels,
    known_nodes,
    lost_connections,
    quiet_options,
)
from lightrag_resilience.testing.redis_server import RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def commands_parser_of(client: Any) -> object:
    return client.commands_parser


@pytest.mark.parametrize("kind", [Redis, RedisCluster])
def test_a_client_accepts_the_quiet_options(kind: Any) -> None:
    options, known = quiet_options(kind), inspect.signature(kind).parameters
    assert options.keys() <= known.keys()
    assert ("driver_info" in options) is ("driver_info" in known)
    kind(host="127.0.0.1", port=1, **options)
    Redis(host="127.0.0.1", port=1, **quiet_options(Redis), **SENTINEL_OPTIONS)


async def test_a_client_sends_no_command_but_those_it_needs(server: RedisServer) -> None:
    client: Any = make_client(server.url)
    await client.ping()
    seen = await client.info("commandstats")
    await client.aclose()
    sent = {name.removeprefix("cmdstat_") for name in seen}
    assert sent - {"info", "config|get", "config"} == {"hello", "client|setname", "ping"}


async def test_the_key_parser_of_a_cluster_client_can_be_replaced() -> None:
    for name in ("initialize", "get_keys"):
        assert inspect.iscoroutinefunction(getattr(AsyncCommandsParser, name))
    parser = StaticKeyParser()
    await parser.initialize(None)
    assert await parser.get_keys("GET", "a") == ("a",)
    assert await parser.get_keys("TIME") is None
    assert isinstance(commands_parser_of(RedisCluster(host="127.0.0.1")), AsyncCommandsParser)
    assert isinstance(
        commands_parser_of(make_client("redis+cluster://127.0.0.1:1")), StaticKeyParser
    )


async def test_a_cluster_client_knows_its_startup_nodes_before_it_connects() -> None:
    client: Any = make_client("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    assert [node.port for node in known_nodes(client)] == [1, 2]


async def test_closing_a_cluster_client_resets_its_initialize_flag() -> None:
    client: Any = make_client("redis+cluster://127.0.0.1:1")
    assert client._initialize is True
    await close_all_nodes(client)  # unsets it, so that `aclose` closes and sets it again
    assert client._initialize is True


async def test_closing_a_sentinel_client_closes_the_clients_of_all_sentinels() -> None:
    client: Any = make_client("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main")
    sentinels = client.connection_pool.sentinel_manager.sentinels
    closed: list[None] = []

    async def aclose() -> None:
        closed.append(None)

    for sentinel in sentinels:
        sentinel.aclose = aclose
    await close_sentinels(client)
    assert len(closed) == len(sentinels) == 2


def test_the_acl_rules_allow_what_redis_py_sends_by_itself() -> None:
    assert {f"+{command}" for command in IMPLICIT_COMMANDS} <= set(needed_rights("lr:").split())


def test_a_write_to_a_lost_connection_raises_a_connection_error() -> None:
    with pytest.raises(RedisConnectionError, match="lost"), lost_connections():
        raise AttributeError("'NoneType' object has no attribute 'write'")
