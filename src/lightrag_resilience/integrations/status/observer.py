"""Looks at breakers and work for those who watch the status page: once for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from lightrag_resilience._version import __version__
from lightrag_resilience.config.policies import BreakerPolicy
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.draining.phases import Phase
from lightrag_resilience.events import AttemptFailed, Event, HealthChanged, StateChanged
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.runtime.tasks import within
from lightrag_resilience.shared_state.cluster_view import ClusterView, Discovery, Overview
from lightrag_resilience.shared_state.operator_control import (
    REDIS_FAILURES,
    open_cluster,
    trouble_with_redis,
)
from lightrag_resilience.shutdown import Coordinator, Progress

from .dependency_rows import dependency_rows
from .headline import headline
from .outage_history import OutageHistory

__all__ = ["StatusObserver", "breaker_policy", "drain_of"]

_MOST = 200  # dependencies
_WATCHING = "GET /resilience"  # how the names of watchers' requests begin
_FRESH = 0.2  # seconds for which one look at Redis serves all
_PATIENCE = 4.0  # seconds for one look at Redis
_FIRST_LOOK = 1.5  # of these, for asking after breakers
_LOOK = 0.3  # the same where all were asked for before
_REST = 3.0  # how much longer than a look nothing is asked, so that it takes a quarter at most
_LONGEST_REST = 1.0  # seconds
_MOST_FOUND = 10_000  # breakers, and workers
_SEARCH_PATIENCE = 2.0  # of these, for the search
_SEARCH_SHARE = 20  # searching all keys of a Redis takes a twentieth of its time at the most


class StatusObserver:
    """What there is to see, for as many watchers as there are.

    Args:
        registry: Of this process.

    Attributes:
        changes: How many changes of breakers it has heard of.
    """

    def __init__(self, registry: Guards) -> None:
        self.changes = 0
        self._registry = registry
        self._record = OutageHistory()
        registry.events.subscribe(self._hear, StateChanged, HealthChanged, AttemptFailed)
        self._watchers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._lock = asyncio.Lock()
        self._connection = contextlib.AsyncExitStack()
        self._cluster: ClusterView | None = None
        self._found = Discovery([], [])
        self._search_at = 0.0
        self._look_at = 0.0
        self._policies: dict[str, BreakerPolicy] = {}
        self._policies_of: Settings | None = None
        self._seen: Overview | None = None
        self._trouble = ""

    @property
    def watchers(self) -> int:
        """How many there are."""
        return len(self._watchers)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[asyncio.Event]:
        """Be a watcher, with an event that is set when there is something new."""
        news = asyncio.Event()
        self._watchers[news] = asyncio.get_running_loop()
        try:
            yield news
        finally:
            del self._watchers[news]
            if not self._watchers:
                self._cluster = None
                connection, self._connection = self._connection, contextlib.AsyncExitStack()
                await connection.aclose()

    def _hear(self, event: Event) -> None:
        """A breaker or a health changed, or an attempt failed; from any thread."""
        self._record.on_event(event)
        if isinstance(event, AttemptFailed):
            return
        self.changes += 1
        for news, loop in list(self._watchers.items()):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(news.set)

    # ------------------------------------------------------------------ a look

    async def snapshot(self) -> dict[str, Any]:
        """Everything that the page shows; times in seconds, moments since the epoch."""
        registry = self._registry
        is_shared = registry.settings.redis_url is not None
        if is_shared:
            await self._look_at_redis()
        seen = await dependency_rows(registry, self._seen, self._record)
        return {
            "at": time.time(),
            "process": {"host": socket.gethostname(), "pid": os.getpid(), "version": __version__},
            "headline": headline(seen),
            "dependencies": seen[:_MOST],
            "left_out": self._count() - len(seen[:_MOST]),
            "changes": self._record.to_json(),
            "drain": self._drain(),
            "redis": self._redis() if is_shared else None,
            "workers": self._workers(),
            "overrides": self._overrides(),
        }

    def _count(self) -> int:
        """How many dependencies there are."""
        names = {guard.name for guard in self._registry}
        return len(names.union(self._found.breakers if self._seen is not None else ()))

    def _drain(self) -> dict[str, Any] | None:
        progress = drain_of(self._registry)
        if progress is None or progress.phase is Phase.RUNNING:
            closed = self._registry.gate.is_closed
            return {"phase": "draining", "reason": "", "left": None, "work": 0} if closed else None
        return {
            "phase": progress.phase.value,
            "reason": progress.reason,
            "left": progress.left,
            "work": sum(progress.in_flight.values()),
        }

    def _redis(self) -> dict[str, Any]:
        link = self._registry.link
        return {
            "trouble": self._trouble,
            "is_up": not self._trouble,
            "round_trip": link.round_trip if link is not None and link.is_up else None,
        }

    def _workers(self) -> list[dict[str, Any]]:
        workers = self._seen.workers if self._seen is not None else []
        return [
            {"host": worker.host, "pid": worker.pid, "alone": list(worker.alone)}
            for worker in workers[:_MOST]
        ]

    def _overrides(self) -> list[dict[str, str]]:
        overrides = self._seen.overrides if self._seen is not None else {}
        return [
            {"name": name, "value": it.value, "reason": it.reason}
            for name, it in list(overrides.items())[:_MOST]
        ]

    async def _look_at_redis(self) -> None:
        async with self._lock:
            now = time.monotonic()
            if now < self._look_at:
                return
            try:
                self._seen = await within(_PATIENCE, self._seen_now(now))
                self._trouble = ""
            except (*REDIS_FAILURES, TimeoutError) as error:
                self._seen, self._trouble = None, trouble_with_redis(self._registry.settings, error)
                self._search_at = 0.0
            ended = time.monotonic()
            self._look_at = ended + min(max(_FRESH, (ended - now) * _REST), _LONGEST_REST)

    async def _seen_now(self, now: float) -> Overview:
        cluster = await self._connected()
        if now >= self._search_at:
            await self._search(cluster, now)
        earlier = {} if self._seen is None else self._seen.breakers
        seconds = _LOOK if len(earlier) >= len(self._found.breakers) else _FIRST_LOOK
        return await cluster.fetch(self._found, earlier=earlier, seconds=seconds)

    async def _search(self, cluster: ClusterView, now: float) -> None:
        """Find what there is, as often as that takes little of Redis's time."""
        try:
            self._found = await within(_SEARCH_PATIENCE, cluster.discover(_MOST_FOUND))
        except TimeoutError:  # there are millions of keys: those of this process must do
            self._found = Discovery([guard.name for guard in self._registry], [])
        took = time.monotonic() - now
        self._search_at = now + took * _SEARCH_SHARE

    async def _connected(self) -> ClusterView:
        if self._cluster is None:
            cluster = open_cluster(self._registry.settings, self._policy_of)
            self._cluster = await self._connection.enter_async_context(cluster)
        return self._cluster

    def _policy_of(self, name: str) -> BreakerPolicy:
        """As `breaker_policy`, kept as long as the settings hold: for many it takes long."""
        settings = self._registry.effective
        if settings is not self._policies_of or len(self._policies) > _MOST_FOUND:
            self._policies_of, self._policies = settings, {}
        if (guard := self._registry.find(name)) is not None:
            return guard.policy.effective_breaker
        if (policy := self._policies.get(name)) is None:
            policy = self._policies[name] = settings.policy_for(name).effective_breaker
        return policy


def breaker_policy(registry: Guards, name: str) -> BreakerPolicy:
    """The policy of a breaker, also of one that this process does not have."""
    if (guard := registry.find(name)) is not None:
        return guard.policy.effective_breaker
    return registry.effective.policy_for(name).effective_breaker


def drain_of(registry: Guards) -> Progress | None:
    """How far the drain of the running loop has come; None where nothing coordinates one.

    Watchers of it are no work: a drain that waits for them, and they for its end, would not end.
    """
    coordinator: Coordinator | None = registry.coordinators.get(asyncio.get_running_loop())
    if coordinator is None:
        return None
    progress = coordinator.progress
    work = {name: n for name, n in progress.in_flight.items() if not name.startswith(_WATCHING)}
    return replace(progress, in_flight=work)
