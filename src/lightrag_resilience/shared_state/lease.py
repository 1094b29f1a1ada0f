"""Work that one worker of a cluster does at a time: a lease in Redis, with a holder and an end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from redis.exceptions import NoScriptError, RedisError

from lightrag_resilience.redis_client import lua_scripts as scripts
from lightrag_resilience.redis_client.client import RedisClient, lost_connections, make_client
from lightrag_resilience.runtime.tasks import cancel_until_done

__all__ = ["SECONDS", "Lease"]

SECONDS = 10.0
"""How long a worker that was killed, or is suspended, keeps a lease from the others."""
_RENEWALS = 4  # in that time
_LONGEST = 60.0  # seconds; the script knows no longer lease
_TRIES = 2  # a connection that broke while the process was suspended says nothing of Redis
_CANCELLATIONS, _CANCEL_AGAIN = 5, 1.0  # seconds between two; LightRAG swallows one now and then


class Lease:
    """The right to do one piece of work, such as the recovery of a workspace.

    Args:
        url: Where Redis is.
        prefix: Of the key.
        work: Its name.
        seconds: How long the lease lasts unless it is renewed; at most 60.
    """

    def __init__(self, url: str, prefix: str, work: str, *, seconds: float = SECONDS) -> None:
        self._url = url
        self._key = f"{prefix}lease:{quote(work)}"
        self._seconds = seconds
        self._worker = secrets.token_hex(8)

    async def run(self, work: Callable[[], Coroutine[Any, Any, object]]) -> float:
        """Do the work as the holder of the lease, which is renewed meanwhile.

        Where Redis is away it is as if there were no other worker: nothing may depend on Redis.

        Returns:
            0.0 where the work was done. Else another worker holds the lease, and has perhaps taken
            it over while this one was suspended, so that the work was cancelled: seconds until that
            one's lease ends, unless it is renewed.
        """
        client = make_client(self._url)
        try:
            if wait := await self._acquire(client, self._seconds):
                return wait
            task = asyncio.create_task(work())
            try:
                while not task.done():
                    await asyncio.wait([task], timeout=self._seconds / _RENEWALS)
                    if not task.done() and (wait := await self._acquire(client, self._seconds)):
                        return wait
                await task
            finally:
                await cancel_until_done([task], every=_CANCEL_AGAIN, attempts=_CANCELLATIONS)
                if task.done():  # else the lease ends by itself
                    await self._acquire(client, 0)
            return 0.0
        finally:
            await client.aclose()

    async def _acquire(self, client: RedisClient, seconds: float) -> float:
        """Hold it for so long: 0.0, or seconds until another worker's ends."""
        words = (1, self._key, self._worker, str(int(seconds * 1000)))
        for _ in range(_TRIES):
            try:
                with lost_connections():
                    try:
                        answer = await client.evalsha(scripts.digest("lease"), *words)
                    except NoScriptError:
                        await client.script_load(scripts.source("lease"))
                        answer = await client.evalsha(scripts.digest("lease"), *words)
            except (RedisError, OSError):
                continue
            return min(answer / 1000, _LONGEST) if isinstance(answer, int) and answer > 0 else 0.0
        return 0.0
