"""Clients of a Redis, of what Sentinels name, or of a cluster.

No command waits long and none is tried again: who uses a client does so in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    ClusterError,
    RedisClusterException,
    RedisError,
)

from lightrag_resilience.config.redis_url import read_address

from .compat import FURTHER_COMMANDS, PLAIN, KeysAtHand, close_all_nodes, lost_connections, quiet

__all__ = [
    "PATIENCE",
    "RedisClient",
    "lost_connections",
    "make_client",
    "needed_rights",
    "publish",
    "subscriptions",
]

RedisClient: TypeAlias = Redis | RedisCluster

PATIENCE = 1.0  # seconds for one answer: no call waits for it, and a busy machine needs a while


def make_client(url: str) -> RedisClient:
    """A client which connects when it is first used. One event loop may use it, until ``aclose``.

    Raises:
        ValueError: It is no address of a Redis.
    """
    address = read_address(url)
    limits: dict[str, Any] = {
        "socket_timeout": PATIENCE,
        "socket_connect_timeout": PATIENCE,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 3,
    }
    options = {**limits, "max_connections": 8, "client_name": "lightrag-resilience"}
    options |= address.options
    if address.kind == "cluster":
        return _Cluster(address.hosts, options)
    limits |= quiet(Redis)
    options |= quiet(Redis)
    if address.kind != "sentinel":
        places: list[dict[str, Any]] = [
            {"host": host, "port": port} for host, port in address.hosts
        ]
        return Redis(**options, **(places or [{}])[0])
    own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    safe = {name: value for name, value in options.items() if name.startswith("ssl")}
    sentinels: Any = Sentinel
    sentinel = sentinels(
        address.hosts, sentinel_kwargs={**limits, **own, **safe, **PLAIN}, **options
    )
    client: Redis = sentinel.master_for(address.service, redis_class=_OfSentinel)
    return client


class _OfSentinel(Redis):
    """A client of whichever server the Sentinels name as master; it also owns their clients."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001
        await super().aclose(close_connection_pool)
        for sentinel in self.connection_pool.sentinel_manager.sentinels:  # type: ignore[attr-defined]
            await sentinel.aclose()


class _Cluster(RedisCluster):
    """A client of a cluster that raises no error but a `RedisError`, even where nodes are dead."""

    def __init__(self, hosts: list[tuple[str, int]], options: dict[str, Any]) -> None:
        nodes = [ClusterNode(host, port) for host, port in hosts]
        own = quiet(RedisCluster)
        super().__init__(startup_nodes=nodes, require_full_coverage=False, **options, **own)
        self.commands_parser = KeysAtHand()
        self._options = options

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            await self.initialize()  # or the first command goes to any node, perhaps a dead one
            return await super().execute_command(*args, **kwargs)
        except RedisClusterException as error:  # is no RedisError
            raise ClusterError(str(error)) from error
        except LookupError as error:  # what redis-py raises for a slot that no node has
            raise ClusterDownError("A slot has no node") from error

    async def script_load(self, script: Any) -> Any:
        """Load on every primary that can be reached.

        Raises:
            RedisError: None can.
        """
        primaries = self.get_primaries()
        work = [
            self.execute_command("SCRIPT LOAD", script, target_nodes=node) for node in primaries
        ]
        answers = await asyncio.gather(*work, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(answers):
            raise (errors or [ClusterError("no node is known")])[0]
        return next(answer for answer in answers if not isinstance(answer, BaseException))

    async def aclose(self) -> None:
        await close_all_nodes(self)

    async def a_node(self) -> Redis:
        """A client of its own for some node that answers.

        Raises:
            RedisError: None does.
        """
        error: RedisError = ClusterError("no node is known")
        nodes = self.get_nodes() or list(self.nodes_manager.startup_nodes.values())
        for node in random.sample(nodes, len(nodes)):
            client = Redis(host=node.host, port=int(node.port), **self._options, **quiet(Redis))
            try:
                await client.ping()
            except RedisError as problem:
                error = problem
                await client.aclose()
            else:
                return client
        raise error


@contextlib.asynccontextmanager
async def subscriptions(client: RedisClient) -> AsyncIterator[PubSub]:
    """What can subscribe to channels; in a cluster at any one node, and another the next time.

    Raises:
        RedisError: No node answers, or the one chosen is lost: enter anew.
    """
    if isinstance(client, _Cluster):
        async with await client.a_node() as node, node.pubsub() as pubsub:
            yield pubsub
    else:
        async with client.pubsub() as pubsub:
            yield pubsub


async def publish(client: RedisClient, channel: str, text: str) -> None:
    """Tell those who listen to a channel.

    Raises:
        RedisError: It cannot be told.
    """
    # In a cluster each node passes it on to all; redis-py would choose one by the channel.
    anywhere = {"target_nodes": RedisCluster.RANDOM} if isinstance(client, RedisCluster) else {}
    await client.execute_command("PUBLISH", channel, text, **anywhere)


def needed_rights(prefix: str) -> str:
    """The rules of an ACL which suffice, for ``ACL SETUSER name on >password``."""
    commands = (
        "hello auth ping select client|setname cluster|slots evalsha script|load subscribe "
        "unsubscribe publish time hset hdel hgetall del pexpire get set scan "
        "zadd zcard zremrangebyscore"
    )
    allowed = " ".join(f"+{command}" for command in (*commands.split(), *FURTHER_COMMANDS))
    return f"resetkeys ~{prefix}* resetchannels &{prefix}cb:ev:* -@all {allowed}"
