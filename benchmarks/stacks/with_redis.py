"""The peers that can keep a breaker's state in Redis, on the same real server as ours.

pybreaker and aiobreaker ask it with a blocking client, on every call: that is all they have, and
the event loop waits with them. interlock-cb has a client of asyncio's, and polls once a second.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref

import aiobreaker
import pybreaker
import redis
from aiobreaker.storage.redis import CircuitRedisStorage as AiobreakerStorage
from interlock import CallTimeoutError, CircuitOpenError
from interlock.integrations.redis import AsyncRedisStorage
from redis.asyncio import Redis

from benchmarks.server import redis_url
from benchmarks.stack import Call, Setup, Stack
from benchmarks.stacks import composed, with_interlock, with_stamina

_names = (f"llm.{number}" for number in itertools.count())
_client = redis.Redis.from_url(redis_url())
_storages: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncRedisStorage] = (
    weakref.WeakKeyDictionary()
)


def _composed(function: Call, setup: Setup) -> Call:
    storage = pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, _client, next(_names))
    return composed.compose(function, setup, storage)


def _stamina(function: Call, setup: Setup) -> Call:
    closed = aiobreaker.CircuitBreakerState.CLOSED
    return with_stamina.compose(function, setup, AiobreakerStorage(closed, _client, next(_names)))


def _interlock(function: Call, setup: Setup) -> Call:
    loop = asyncio.get_running_loop()
    if loop not in _storages:
        _storages[loop] = AsyncRedisStorage(Redis.from_url(redis_url()))
    return with_interlock.pipeline_around(function, setup, _storages[loop])


STACKS = [
    Stack(
        name="composed by hand, Redis",
        protect=_composed,
        refusal=pybreaker.CircuitBreakerError,
        timeout=TimeoutError,
        is_weighed=False,
    ),
    Stack(
        name="stamina + aiobreaker, Redis, no timeout",
        protect=_stamina,
        refusal=aiobreaker.CircuitBreakerError,
        timeout=None,
        is_weighed=False,
    ),
    Stack(
        name="interlock-cb pipeline, Redis",
        protect=_interlock,
        refusal=CircuitOpenError,
        timeout=CallTimeoutError,
        has_bulkhead=True,
        is_weighed=False,
    ),
]
