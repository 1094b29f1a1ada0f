"""The real server behind stacks that share through Redis."""

from __future__ import annotations

import functools

from lightrag_resilience.testing.redis_server import RedisServer

__all__ = ["redis_url"]


@functools.cache
def redis_url() -> str:
    """One server for this process, started when it is first wanted; it ends with the process."""
    server = RedisServer()
    server.start()
    return server.url
