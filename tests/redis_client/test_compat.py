"""What is private or new in redis-py is as it is taken to be, in the version that is installed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from redis._parsers import AsyncCommandsParser
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError

from lightrag_resilience.redis_client.client import make_client, needed_rights
from lightrag_resilience.redis_client.compat import (
    FURTHER_COMMANDS,
    PLAIN,
    KeysAtHand,
    close_all_nodes,
    lost_connections,
    quiet,
)
from lightrag_resilience.testing.redis_server import RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


@pytest.mark.parametrize("kind", [Redis, RedisCluster])
def test_a_client_takes_the_options_that_keep_it_quiet(kind: Any) -> None:
    options, known = quiet(kind), inspect.signature(kind).parameters
    assert options.keys() <= known.keys()
    assert ("driver_info" in options) is ("driver_info" in known)
    kind(host="127.0.0.1", port=1, **options)
    Redis(host="127.0.0.1", port=1, **quiet(Redis), **PLAIN)


async def test_a_client_sends_no_command_but_those_it_needs(server: RedisServer) -> None:
    client: Any = make_client(server.url)
    await client.ping()
    seen = await client.info("commandstats")
    await client.aclose()
    sent = {name.removeprefix("cmdstat_") for name in seen}
    assert sent - {"info", "config|get", "config"} == {"hello", "client|setname", "ping"}


async def test_the_parser_of_commands_is_asked_as_before() -> None:
    for name in ("initialize", "get_keys"):
        assert inspect.iscoroutinefunction(getattr(AsyncCommandsParser, name))
    keys = KeysAtHand()
    await keys.initialize(None)
    assert await keys.get_keys("GET", "a") == ("a",)
    assert await keys.get_keys("TIME") is None


async def test_a_client_of_a_cluster_has_the_switch_that_lets_it_close() -> None:
    client: Any = make_client("redis+cluster://127.0.0.1:1")
    assert client._initialize is True
    assert list(client.nodes_manager.startup_nodes) == ["127.0.0.1:1"]
    await close_all_nodes(client)
    assert client._initialize is True  # it was unset, and closing set it


def test_what_redis_py_sends_by_itself_is_among_the_rights() -> None:
    assert {f"+{command}" for command in FURTHER_COMMANDS} <= set(needed_rights("lr:").split())


def test_writing_to_a_lost_connection_is_an_error_of_redis() -> None:
    with pytest.raises(RedisConnectionError, match="lost"), lost_connections():
        raise AttributeError("'NoneType' object has no attribute 'write'")
