"""Work that one worker of a cluster does at a time: a lease in Redis, with an owner and an end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from urllib.parse import quote

from redis.exceptions import NoScriptError, RedisError

from . import scripts
from .client import RedisClient, end, make_client

__all__ = ["Lease"]

_RENEWALS = 3  # in the time that it is held


class Lease:
    """The right to do one piece of work, such as the recovery of a workspace.

    Args:
        url: Where Redis is.
        prefix: Of the key.
        work: Its name.
        seconds: How long a worker that is gone, or stands still, keeps it from the others.
    """

    def __init__(self, url: str, prefix: str, work: str, *, seconds: float = 30.0) -> None:
        self._url = url
        self._key = f"{prefix}lease:{quote(work)}"
        self._seconds = seconds
        self._worker = secrets.token_hex(8)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[bool]:
        """Do something as the holder; False where another worker is. Cancels who has lost it.

        Where Redis is away it is as if there were no other worker: nothing may depend on Redis.
        """
        client = make_client(self._url)
        try:
            if not await self._ask(client, self._seconds):
                yield False
                return
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - this is a coroutine
            ended = asyncio.Event()
            renewal = asyncio.create_task(self._renew(client, task, ended))
            try:
                yield True
            finally:
                ended.set()
                await end([renewal])
                await self._ask(client, 0)
        finally:
            await client.aclose()

    async def _renew(
        self, client: RedisClient, holder: asyncio.Task[object], ended: asyncio.Event
    ) -> None:
        """Keep it. A worker that stood still for too long finds it taken, and stops."""
        while not ended.is_set():  # a cancellation may be lost, and who waits for this be cancelled
            await asyncio.sleep(self._seconds / _RENEWALS)
            if not await self._ask(client, self._seconds) and not ended.is_set():
                holder.cancel("the lease is another worker's")
                return

    async def _ask(self, client: RedisClient, seconds: float) -> bool:
        words = (1, self._key, self._worker, str(int(seconds * 1000)))
        try:
            try:
                answer = await client.evalsha(scripts.digest("lease"), *words)
            except NoScriptError:
                await client.script_load(scripts.source("lease"))
                answer = await client.evalsha(scripts.digest("lease"), *words)
        except (RedisError, OSError):
            return True
        return bool(answer == 1)
