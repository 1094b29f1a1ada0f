"""Clients for one Redis server, for the master that Sentinels name, or for a cluster.

Commands time out after `ANSWER_TIMEOUT` and are not retried: only background tasks use a client,
and they run again anyway.
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

from .compat import (
    IMPLICIT_COMMANDS,
    SENTINEL_OPTIONS,
    close_all_nodes,
    close_sentinels,
    known_nodes,
    lost_connections,
    quiet_options,
    use_static_key_parser,
)

__all__ = [
    "ANSWER_TIMEOUT",
    "RedisClient",
    "lost_connections",
    "make_client",
    "needed_rights",
    "publish",
    "subscriptions",
]

RedisClient: TypeAlias = Redis | RedisCluster

ANSWER_TIMEOUT = 1.0  # seconds; no call waits for it, and a busy machine may need that long


def make_client(url: str) -> RedisClient:
    """A client that connects on first use. It belongs to one event loop; close it with ``aclose``.

    Raises:
        ValueError: `url` is not a Redis address.
    """
    address = read_address(url)
    timeouts: dict[str, Any] = {
        "socket_timeout": ANSWER_TIMEOUT,
        "socket_connect_timeout": ANSWER_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 3,
    }
    options = {**timeouts, "max_connections": 8, "client_name": "lightrag-resilience"}
    options |= address.options
    if address.kind == "cluster":
        return _ClusterClient(address.hosts, options)
    timeouts |= quiet_options(Redis)
    options |= quiet_options(Redis)
    if address.kind != "sentinel":
        hosts: list[dict[str, Any]] = [{"host": host, "port": port} for host, port in address.hosts]
        return Redis(**options, **(hosts or [{}])[0])
    # The Sentinels have credentials of their own, and the TLS options of the master.
    login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    untyped: Any = Sentinel
    sentinel = untyped(
        address.hosts, sentinel_kwargs={**timeouts, **login, **tls, **SENTINEL_OPTIONS}, **options
    )
    client: Redis = sentinel.master_for(address.service, redis_class=_SentinelClient)
    return client


class _SentinelClient(Redis):
    """A client of the master that the Sentinels name; it owns the clients of the Sentinels too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001
        await super().aclose(close_connection_pool)
        await close_sentinels(self)


class _ClusterClient(RedisCluster):
    """A client of a cluster that raises only `RedisError`, even if nodes are dead."""

    def __init__(self, hosts: list[tuple[str, int]], options: dict[str, Any]) -> None:
        nodes = [ClusterNode(host, port) for host, port in hosts]
        quiet = quiet_options(RedisCluster)
        super().__init__(startup_nodes=nodes, require_full_coverage=False, **options, **quiet)
        use_static_key_parser(self)
        self._options = options

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            # Without this the first command would go to any node, perhaps a dead one.
            await self.initialize()
            return await super().execute_command(*args, **kwargs)
        except RedisClusterException as error:  # not a subclass of RedisError
            raise ClusterError(str(error)) from error
        except LookupError as error:  # redis-py raises it for a slot without a node
            raise ClusterDownError("A slot has no node") from error

    async def script_load(self, script: Any) -> Any:
        """Load the script on every primary that can be reached: a slot may move to any of them.

        Raises:
            RedisError: No primary can be reached.
        """
        primaries = self.get_primaries()
        loads = [
            self.execute_command("SCRIPT LOAD", script, target_nodes=node) for node in primaries
        ]
        answers = await asyncio.gather(*loads, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(answers):
            raise (errors or [ClusterError("no node is known")])[0]
        return next(answer for answer in answers if not isinstance(answer, BaseException))

    async def aclose(self) -> None:
        await close_all_nodes(self)

    async def connect_to_any_node(self) -> Redis:
        """A separate client of a random node that answers; the caller closes it.

        Raises:
            RedisError: No node answers.
        """
        last_error: RedisError = ClusterError("no node is known")
        nodes = known_nodes(self)
        for node in random.sample(nodes, len(nodes)):
            options = {**self._options, **quiet_options(Redis)}
            client = Redis(host=node.host, port=int(node.port), **options)
            try:
                await client.ping()
            except RedisError as error:
                last_error = error
                await client.aclose()
            else:
                return client
        raise last_error


@contextlib.asynccontextmanager
async def subscriptions(client: RedisClient) -> AsyncIterator[PubSub]:
    """A `PubSub`; in a cluster at one random node, as each node gets the messages of all.

    Raises:
        RedisError: No node answers, or the connection to the chosen one is lost: enter again.
    """
    if isinstance(client, _ClusterClient):
        async with await client.connect_to_any_node() as node, node.pubsub() as pubsub:
            yield pubsub
    else:
        async with client.pubsub() as pubsub:
            yield pubsub


async def publish(client: RedisClient, channel: str, text: str) -> None:
    """Publish a message to all subscribers of a channel.

    Raises:
        RedisError: Redis cannot be used.
    """
    # A cluster's node forwards it to all others. redis-py would choose the node that has the slot
    # of the channel's name, which may be a dead one.
    any_node = {"target_nodes": RedisCluster.RANDOM} if isinstance(client, RedisCluster) else {}
    await client.execute_command("PUBLISH", channel, text, **any_node)


def needed_rights(prefix: str) -> str:
    """The least ACL rules that suffice, to follow ``ACL SETUSER name on >password``."""
    commands = (
        "hello auth ping select client|setname cluster|slots evalsha script|load subscribe "
        "unsubscribe publish time hset hdel hgetall del pexpire get set scan "
        "zadd zcard zremrangebyscore"
    )
    allowed = " ".join(f"+{command}" for command in (*commands.split(), *IMPLICIT_COMMANDS))
    return f"resetkeys ~{prefix}* resetchannels &{prefix}cb:ev:* -@all {allowed}"
