"""What differs between the versions of redis-py from 5.0.1 to below 9, or is private in them.

A contract test holds each of these for the version that is installed, and `make test-redis` runs
it, and what is built on it, for every major one.
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
from redis.asyncio import RedisCluster
from redis.exceptions import ConnectionError  # noqa: A004 - redis-py's

__all__ = [
    "FURTHER_COMMANDS",
    "PLAIN",
    "KeysAtHand",
    "close_all_nodes",
    "lost_connections",
    "quiet",
]

PLAIN: dict[str, Any] = {"protocol": 2}
"""Options of a client of a Sentinel, whose answers redis-py 5.0 cannot read in the newer one."""
FURTHER_COMMANDS = ("info",) if redis.__version__.startswith("5.0.") else ()
"""Commands that redis-py sends by itself: the first 5.0 ask whether a node is one of a cluster."""


@lru_cache(maxsize=8)
def _parameters(kind: type) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters)


def quiet(kind: type) -> dict[str, Any]:
    """Options with which a client of this class sends nothing by itself that is not needed.

    It names no library (CLIENT SETINFO needs one more right), does not wait longer where the server
    announces its maintenance, and leaves it to its user to try again.
    """
    known = _parameters(kind)
    options: dict[str, Any] = {"lib_name": None, "lib_version": None}
    if "driver_info" in known:  # in place of both, since 7.2
        options = {"driver_info": None}
    if "maint_notifications_config" in known:  # on the asyncio side since 8.1
        maintenance = importlib.import_module("redis.maint_notifications")
        disabled = maintenance.MaintNotificationsConfig(enabled=False)
        options["maint_notifications_config"] = disabled
    if "connection_error_retry_attempts" in known:  # before 6.0; since then `retry` says it
        options |= {"cluster_error_retry_attempts": 1, "connection_error_retry_attempts": 0}
    return options


class KeysAtHand(AsyncCommandsParser):
    """Where keys are in the commands used here. redis-py asks a node, which may be a dead one."""

    async def initialize(self, node: Any = None) -> None:
        """Ask nothing."""

    async def get_keys(self, *args: Any) -> tuple[str, ...] | None:
        """The first key: commands of several have them in one slot."""
        return args[1:2] or None


async def close_all_nodes(client: RedisCluster) -> None:
    """Close the connections of a cluster's client, also where its last command failed."""
    client._initialize = False  # noqa: SLF001 - else connections stay open then
    await RedisCluster.aclose(client)


@contextlib.contextmanager
def lost_connections() -> Iterator[None]:
    """Around a command: what Python 3.12 makes of writing to a lost connection is no bug of ours.

    Raises:
        ConnectionError: redis-py's, instead of asyncio's AttributeError.
    """
    try:
        yield
    except AttributeError as error:
        raise ConnectionError("The connection was lost") from error
