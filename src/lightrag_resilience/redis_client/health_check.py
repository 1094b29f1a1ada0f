"""Whether a Redis is fit for what is shared: there, of the right age, with rights and memory."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha1
from typing import Any

from redis.exceptions import RedisError

from lightrag_resilience.text import LONGEST_TEXT, printable

from .client import PATIENCE, RedisClient, publish, subscriptions
from .error_text import describe_redis_error

__all__ = ["Remark", "check_redis"]

Remark = tuple[bool, str, str]
"""Whether it is an error, what is wrong, and what to do."""

_OLDEST = (6, 2)
_SCRIPT = "return 1"
_FULL = 0.9  # of its memory
_BRIEF = 5  # seconds after which our own key is gone, whatever happens


async def check_redis(client: RedisClient, prefix: str) -> list[Remark]:
    """What is wrong with a Redis; nothing where all is well. It writes one key and deletes it.

    Args:
        client: Of the Redis.
        prefix: What all our keys and channels begin with.

    Raises:
        RedisError: It cannot be used at all.
        OSError: The same.
    """
    anyhow: Any = client
    await anyhow.ping()
    remarks = await _rights(anyhow, prefix)
    try:
        seen = await _one_node(await anyhow.info())
    except RedisError as error:
        advice = "let an administrator look: INFO is no right that workers need"
        return [
            *remarks,
            (False, f"its settings cannot be seen: {describe_redis_error(error)}", advice),
        ]
    return [*remarks, *_version(seen), *_memory(seen)]


async def _one_node(seen: Any) -> Mapping[str, Any]:
    """Of a cluster any node: they are of one kind."""
    nested = next(iter(seen.values()), None)
    return nested if isinstance(nested, dict) and "redis_version" in nested else seen


async def _rights(client: Any, prefix: str) -> list[Remark]:
    key = f"{prefix}{{doctor}}:{secrets.token_hex(8)}"
    channel = f"{prefix}cb:ev:doctor"
    steps: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.hset(key, "a", "1"),
        lambda: client.pexpire(key, _BRIEF * 1000),
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
        lambda: _listen(client, channel),
    ]
    problems: dict[str, None] = {}
    for step in steps:
        try:
            await step()
        except RedisError as error:
            problems[describe_redis_error(error)] = None
    with contextlib.suppress(RedisError):
        await client.delete(key)
    advice = "give the user what `lightrag-resilience acl` prints"
    return [(True, problem, advice) for problem in problems]


async def _listen(client: Any, channel: str) -> None:
    async with subscriptions(client) as pubsub:
        await pubsub.subscribe(channel)
        await pubsub.get_message(timeout=PATIENCE)  # the answer, or what it raises


def _version(seen: Mapping[str, Any]) -> list[Remark]:
    shown = printable(str(seen.get("redis_version", "")), LONGEST_TEXT)
    found = re.match(r"([0-9]{1,9})\.([0-9]{1,9})", shown)
    if found is None or tuple(map(int, found.groups())) >= _OLDEST:
        return []
    return [(True, f"its version is {shown}", "use Redis 6.2 or later, or Valkey")]


def _memory(seen: Mapping[str, Any]) -> list[Remark]:
    policy = printable(str(seen.get("maxmemory_policy", "noeviction")), LONGEST_TEXT)
    if not policy.startswith("allkeys"):
        most, used = _bytes(seen.get("maxmemory")), _bytes(seen.get("used_memory"))
        if not most or used < _FULL * most:
            return []
        problem = f"its memory is {used / most:.0%} full, and beyond it takes no writes"
        return [(False, problem, "raise maxmemory, or see what else is kept there")]
    problem = f"when its memory is full it drops any key (maxmemory-policy {policy}), ours too"
    return [(True, problem, "set maxmemory-policy to noeviction or volatile-ttl")]


def _bytes(value: object) -> int:
    """Redis's own word for a size; 0 where it is none."""
    return value if type(value) is int else 0
