"""Processes of this machine, and Python processes that own a server."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lightrag_resilience.testing.redis_server import RedisServer

PATIENCE = 30.0  # seconds


def children() -> set[int]:
    """The processes whose parent we are."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(") ")[2].split()
            if int(fields[1]) == os.getpid():
                found.add(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether it runs; a process that ended and is not reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def until(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "It did not happen"
        time.sleep(0.005)


def client_of(
    server: RedisServer, *, timeout: float = PATIENCE, password: str | None = None
) -> Redis:
    once = Retry(NoBackoff(), 0)
    return Redis.from_url(server.url, password=password, socket_timeout=timeout, retry=once)


def answers(server: RedisServer) -> bool:
    with client_of(server) as client:
        return bool(client.ping())
