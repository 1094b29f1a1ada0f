"""The real synchronizers against a real server: up to 200 workers in four processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from benchmarks.footprint import commands_of_clients
from benchmarks.sharing.speed import Spread, spread
from lightrag_resilience.testing.command_process import CommandedProcess, request_all
from lightrag_resilience.testing.redis_server import RedisServer

__all__ = ["Load", "Measured", "measure_real"]

_PROCESSES = 4
_PROBES = 3
_TRIPS = 5
_EVERY = 0.05  # seconds between two calls of a busy worker: more often than it reports
_OPEN_FOR = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Load:
    """What workers put on the server while one thing goes on.

    Attributes:
        commands: Commands a second, of one worker.
        worker_cpu: Processor time of one worker, as a share of a core; calls are in it.
    """

    commands: float
    worker_cpu: float


@dataclass(frozen=True, slots=True)
class Measured:
    """So many workers that share one breaker.

    Attributes:
        workers: How many there were.
        idle: No calls.
        busy: Twenty calls a second each, all of which succeed.
        trip: Seconds from a trip in one of them until each of the others had it.
        probes: For each recovery, calls that were let through half-open by all together; quota 3.
    """

    workers: int
    idle: Load
    busy: Load
    trip: Spread
    probes: list[int]


class _Cluster:
    def __init__(self, processes: list[CommandedProcess], client: Any, workers: int) -> None:
        self.processes = processes
        self.client = client
        self.workers = workers

    def all(self, do: str, **details: Any) -> list[Any]:
        return request_all(self.processes, do, **details)

    def load(self, seconds: float) -> Load:
        sent, busy = commands_of_clients(self.client), sum(self.all("busy"))
        began = time.monotonic()
        time.sleep(seconds)
        took = (time.monotonic() - began) * self.workers
        sent = commands_of_clients(self.client) - sent
        return Load(sent / took, (sum(self.all("busy")) - busy) / took)


def measure_real(workers: int, seconds: float) -> Measured:
    """Start so many workers, and measure each condition for so many seconds."""
    with _cluster(workers) as cluster:
        idle = cluster.load(seconds)
        cluster.all("call_on", every=_EVERY)
        busy = cluster.load(seconds)
        cluster.all("end")
        trips, probes = [], []
        for turn in range(_TRIPS):
            late, let_through = _trip(cluster, turn % len(cluster.processes))
            trips += late
            probes.append(let_through)
    return Measured(workers, idle, busy, spread(trips), probes)


def _trip(cluster: _Cluster, turn: int) -> tuple[list[float], int]:
    """Seconds until each of the others has a trip, and the probes of the recovery from it."""
    tripped = cluster.processes[turn].request("trip")
    since = [at for times in cluster.all("all_in", state="open") for at in times]
    cluster.all("call_on", every=_EVERY)
    cluster.all("all_in", state="closed")
    probes = sum(cluster.all("end"))
    late = sorted(at - tripped for at in since)
    return late[1:] or late, probes  # without the one that tripped


@contextmanager
def _cluster(workers: int) -> Iterator[_Cluster]:
    number = min(_PROCESSES, workers)
    with RedisServer() as server, ExitStack() as stack:
        processes = [
            stack.enter_context(CommandedProcess(["-m", "benchmarks.cluster_model.worker"], {}))
            for _ in range(number)
        ]
        client = stack.enter_context(redis.Redis.from_url(server.url))
        details = {"url": server.url, "open_for": _OPEN_FOR, "probes": _PROBES}
        for turn, process in enumerate(processes):
            process.send("begin", number=(workers + turn) // number, **details)
        for process in processes:
            process.receive()
        yield _Cluster(processes, client, workers)
