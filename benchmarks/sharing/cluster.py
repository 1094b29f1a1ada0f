"""A real server, and the processes that share a breaker through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from lightrag_resilience.testing.command_process import CommandedProcess, request_all
from lightrag_resilience.testing.redis_server import RedisServer

__all__ = ["Cluster", "cluster"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Workers, and their server."""

    server: RedisServer
    workers: list[CommandedProcess]

    def all(self, do: str, **details: Any) -> list[Any]:
        """Command all of them at the same time."""
        return request_all(self.workers, do, **details)

    def sent(self) -> dict[str, int]:
        """How many commands of each kind the server has run."""
        with redis.Redis.from_url(self.server.url) as client:
            stats: Any = client.info("commandstats")
        return {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}


@contextmanager
def cluster(number: int = 4, *, shared: bool = True, **policy: str) -> Iterator[Cluster]:
    """Workers that have found Redis; keywords are variables, by default the breaker's.

    Raises:
        RuntimeError: A worker does not find Redis.
    """
    names = {key if "__" in key else f"BREAKER__{key}": value for key, value in policy.items()}
    variables = {f"RESILIENCE_LLM__{name}": value for name, value in names.items()}
    variables["RESILIENCE_LLM__RETRY__ATTEMPTS"] = "1"
    with RedisServer() as server, ExitStack() as stack:
        if shared:
            variables["RESILIENCE_REDIS_URL"] = server.url
        arguments = ["-m", "benchmarks.sharing.worker"]
        workers = [
            stack.enter_context(CommandedProcess(arguments, variables)) for _ in range(number)
        ]
        made = Cluster(server, workers)
        if shared:
            made.all("control", how="begin")
            if not all(made.all("is_connected")):
                raise RuntimeError("A worker did not find Redis")
        yield made
