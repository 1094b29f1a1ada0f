"""All that differs between redis-py 5.0.1 and below 9, or is private or undocumented in it.

No other module touches such parts. A contract test for each fails on the version that removes
it; `make test-redis` runs them on every major version.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import redis
from redis._parsers import AsyncCommandsParser
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import ConnectionError  # noqa: A004 - redis-py's

__all__ = [
    "IMPLICIT_COMMANDS",
    "SENTINEL_OPTIONS",
    "StaticKeyParser",
    "close_all_nodes",
    "close_sentinels",
    "known_nodes",
    "lost_connections",
    "quiet_options",
    "use_static_key_parser",
]

SENTINEL_OPTIONS: dict[str, Any] = {"protocol": 2}
"""For a client of a Sentinel: redis-py 5.0 cannot read a Sentinel's answers in protocol 3."""
IMPLICIT_COMMANDS = ("info",) if redis.__version__.startswith("5.0.") else ()
"""Commands that redis-py sends by itself: early 5.0 asks whether a node belongs to a cluster."""


@lru_cache(maxsize=8)
def _parameters(kind: type) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters)


def quiet_options(kind: type) -> dict[str, Any]:
    """Options with which a client of this class sends only what it is asked to send.

    It does not name its library (CLIENT SETINFO needs one more right), does not wait longer during
    a maintenance that the server announces, and does not retry.
    """
    known = _parameters(kind)
    options: dict[str, Any] = {"lib_name": None, "lib_version": None}
    if "driver_info" in known:  # replaces both since 7.2
        options = {"driver_info": None}
    if "maint_notifications_config" in known:  # asyncio has it since 8.1
        maintenance = importlib.import_module("redis.maint_notifications")
        disabled = maintenance.MaintNotificationsConfig(enabled=False)
        options["maint_notifications_config"] = disabled
    if "connection_error_retry_attempts" in known:  # until 6.0, which has `retry` instead
        options |= {"cluster_error_retry_attempts": 1, "connection_error_retry_attempts": 0}
    return options


class StaticKeyParser(AsyncCommandsParser):
    """Knows where the keys of our commands are; redis-py would ask a node, perhaps a dead one."""

    async def initialize(self, node: Any = None) -> None:
        """Send nothing."""

    async def get_keys(self, *args: Any) -> tuple[str, ...] | None:
        """The first key: all keys of one command are in one slot."""
        return args[1:2] or None


def use_static_key_parser(client: RedisCluster) -> None:
    """Replace the parser that finds the keys of a command."""
    client.commands_parser = StaticKeyParser()


def known_nodes(client: RedisCluster) -> list[ClusterNode]:
    """The nodes of a cluster; those of its address until one has answered."""
    return client.get_nodes() or list(client.nodes_manager.startup_nodes.values())


async def close_all_nodes(client: RedisCluster) -> None:
    """Close all connections of a cluster's client, even if its last command failed."""
    # A failed command marks the client as not initialized, and then `aclose` does nothing.
    client._initialize = False  # noqa: SLF001
    await RedisCluster.aclose(client)


async def close_sentinels(client: Redis) -> None:
    """Close the clients of the Sentinels that a client of their master uses."""
    pool: Any = client.connection_pool
    for sentinel in pool.sentinel_manager.sentinels:
        await sentinel.aclose()


@contextlib.contextmanager
def lost_connections() -> Iterator[None]:
    """Around a command: makes an AttributeError of redis-py the connection error that it means.

    Since Python 3.12 a closed transport drops the attributes that a write needs.

    Raises:
        ConnectionError: redis-py's.
    """
    try:
        yield
    except AttributeError as error:
        raise ConnectionError("The connection was lost") from error
