"""Checks a Redis for the doctor: reachable, recent enough, with the needed rights and memory."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha1
from typing import Any

from redis.exceptions import RedisError

from lightrag_resilience.text import LONGEST_TEXT, printable

from .client import ANSWER_TIMEOUT, RedisClient, publish, subscriptions
from .error_text import describe_redis_error

__all__ = ["RedisFinding", "check_redis"]

RedisFinding = tuple[bool, str, str]
"""Whether it is an error (else a warning), what is wrong, and what to do."""

_MIN_VERSION = (6, 2)
_SCRIPT = "return 1"
_NEARLY_FULL = 0.9  # share of its memory
_KEY_TTL = 5  # seconds; the test key expires even if it cannot be deleted


async def check_redis(client: RedisClient, prefix: str) -> list[RedisFinding]:
    """All that is wrong with a Redis. It writes one key and deletes it.

    Args:
        client: A client of it.
        prefix: Of all our keys and channels.

    Raises:
        RedisError: Redis cannot be used at all.
        OSError: The same.
    """
    untyped: Any = client
    await untyped.ping()
    findings = await _check_rights(untyped, prefix)
    try:
        info = _one_node(await untyped.info())
    except RedisError as error:
        problem = f"its settings cannot be read: {describe_redis_error(error)}"
        advice = "run this as an administrator: workers do not need INFO"
        return [*findings, (False, problem, advice)]
    return [*findings, *_check_version(info), *_check_memory(info)]


def _one_node(info: Any) -> Mapping[str, Any]:
    """The answer of one node; a cluster gives one for each, and they are alike."""
    nested = next(iter(info.values()), None)
    return nested if isinstance(nested, dict) and "redis_version" in nested else info


async def _check_rights(client: Any, prefix: str) -> list[RedisFinding]:
    key = f"{prefix}{{doctor}}:{secrets.token_hex(8)}"
    channel = f"{prefix}cb:ev:doctor"
    steps: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.hset(key, "a", "1"),
        lambda: client.pexpire(key, _KEY_TTL * 1000),
        lambda: client.hgetall(key),
        lambda: client.hdel(key, "a"),
        lambda: client.zadd(key, {"a": 1}),
        lambda: client.zcard(key),
        lambda: client.zremrangebyscore(key, 0, 1),
        lambda: client.get(key),
        client.time,
        lambda: client.script_load(_SCRIPT),
        lambda: client.evalsha(sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest(), 1, key),
        lambda: publish(client, channel, ""),
        lambda: _subscribe(client, channel),
    ]
    problems: dict[str, None] = {}  # a set in the order of the steps
    for step in steps:
        try:
            await step()
        except RedisError as error:
            problems[describe_redis_error(error)] = None
    with contextlib.suppress(RedisError):
        await client.delete(key)
    advice = "give the user what `lightrag-resilience acl` prints"
    return [(True, problem, advice) for problem in problems]


async def _subscribe(client: Any, channel: str) -> None:
    async with subscriptions(client) as pubsub:
        await pubsub.subscribe(channel)
        await pubsub.get_message(timeout=ANSWER_TIMEOUT)  # an error comes as the answer


def _check_version(info: Mapping[str, Any]) -> list[RedisFinding]:
    version = printable(str(info.get("redis_version", "")), LONGEST_TEXT)
    found = re.match(r"([0-9]{1,9})\.([0-9]{1,9})", version)
    if found is None or tuple(map(int, found.groups())) >= _MIN_VERSION:
        return []
    return [(True, f"its version is {version}", "use Redis 6.2 or later, or Valkey")]


def _check_memory(info: Mapping[str, Any]) -> list[RedisFinding]:
    policy = printable(str(info.get("maxmemory_policy", "noeviction")), LONGEST_TEXT)
    if not policy.startswith("allkeys"):
        maximum, used = _bytes(info.get("maxmemory")), _bytes(info.get("used_memory"))
        if not maximum or used < _NEARLY_FULL * maximum:
            return []
        problem = f"its memory is {used / maximum:.0%} full, and a full Redis takes no writes"
        return [(False, problem, "raise maxmemory, or find out what else is stored there")]
    problem = f"when its memory is full it evicts any key (maxmemory-policy {policy}), ours too"
    return [(True, problem, "set maxmemory-policy to noeviction or volatile-ttl")]


def _bytes(value: object) -> int:
    """A size that Redis reports; 0 if it has another type."""
    return value if type(value) is int else 0
