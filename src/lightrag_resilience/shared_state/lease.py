"""A lease in Redis for work that one worker of a cluster does at a time.

redis-py's ``Lock`` does not fit. Its public API answers only yes or no, but a rejected worker waits
for just the time left; a separate PTTL needs a further right, and its answer may be about the next
holder. And ``Lock.extend`` raises if Redis lost the key, while a holder here acquires the lease
again unless another worker has it.
"""

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
"""How long a worker that was killed, or is suspended, holds_probe a lease from the others."""
_RENEWALS = 4  # in that time
_MAX_SECONDS = 60.0  # the script removes longer leases
_ATTEMPTS = 2  # the first may meet a connection that broke while the process was suspended
_CANCELLATIONS, _CANCEL_AGAIN = 5, 1.0  # seconds; LightRAG may swallow a cancellation


class Lease:
    """The right to do one piece of work, such as the recovery of a workspace.

    Args:
        url: Of Redis.
        prefix: Of the key.
        work: The name of the work.
        seconds: How long the lease lasts unless it is renewed; at most 60.
    """

    def __init__(self, url: str, prefix: str, work: str, *, seconds: float = SECONDS) -> None:
        self._url = url
        self._key = f"{prefix}lease:{quote(work)}"
        self._seconds = seconds
        self._worker = secrets.token_hex(8)

    async def run(self, work: Callable[[], Coroutine[Any, Any, object]]) -> float:
        """Do the work while holding the lease, and renew the lease meanwhile.

        The work runs in a task of its own, so that it can be cancelled where another worker took
        over while this one was suspended. Without Redis the work is done, as by a single worker.

        Returns:
            0.0 if the work was done. Else the seconds until another worker's lease ends, unless
            that one renews it.
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
                if task.done():  # else it may still work, and the lease must end by itself
                    await self._acquire(client, 0)
            return 0.0
        finally:
            await client.aclose()

    async def _acquire(self, client: RedisClient, seconds: float) -> float:
        """Acquire or renew, or release with 0. Returns 0.0, or the seconds until another's ends."""
        arguments = (1, self._key, self._worker, str(int(seconds * 1000)))
        for _ in range(_ATTEMPTS):
            try:
                with lost_connections():
                    try:
                        answer = await client.evalsha(scripts.digest("lease"), *arguments)
                    except NoScriptError:
                        await client.script_load(scripts.source("lease"))
                        answer = await client.evalsha(scripts.digest("lease"), *arguments)
            except (RedisError, OSError):
                continue
            return (
                min(answer / 1000, _MAX_SECONDS) if isinstance(answer, int) and answer > 0 else 0.0
            )
        return 0.0
