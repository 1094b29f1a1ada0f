"""Collects what the status page shows, once for all viewers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from lightrag_resilience._version import __version__
from lightrag_resilience.config.policies import BreakerPolicy
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.draining.phases import Phase
from lightrag_resilience.events import (
    AttemptFailed,
    Event,
    HealthChanged,
    StateChanged,
    TokensUsed,
)
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

_MOST = 200  # dependencies that are sent
_VIEWER = "GET /resilience"  # how the names of viewers' requests begin
_FRESH = 0.2  # seconds for which one fetch from Redis serves all viewers
_FETCH_TIMEOUT = 4.0  # seconds for one fetch from Redis
_FIRST_BREAKERS = 1.5  # of these, for the breakers when many are unknown
_BREAKERS = 0.3  # the same when all are known: the least recent ones are refreshed in turn
_REST = 3.0  # times a fetch's duration until the next: fetching takes a quarter of the time at most
_LONGEST_REST = 1.0  # seconds
_MOST_FOUND = 10_000  # breakers, and workers
_SEARCH_TIMEOUT = 2.0  # seconds
_SEARCH_REST = 20  # times a search's duration until the next: SCAN over all keys costs Redis time


class StatusObserver:
    """Fetches the state of breakers and work while the page has viewers.

    Args:
        registry: Of this process.

    Attributes:
        changes: Events of breakers received so far.
    """

    def __init__(self, registry: Guards) -> None:
        self.changes = 0
        self._registry = registry
        self._history = OutageHistory()
        registry.events.subscribe(self._on_event, StateChanged, HealthChanged, AttemptFailed)
        self._tokens: Counter[tuple[str, str]] = Counter()
        registry.events.subscribe(self._on_tokens, TokensUsed)
        self._viewers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._lock = asyncio.Lock()
        self._connection = contextlib.AsyncExitStack()
        self._view: ClusterView | None = None
        self._found = Discovery([], [])
        self._search_at = 0.0
        self._fetch_at = 0.0
        self._policies: dict[str, BreakerPolicy] = {}
        self._policies_of: Settings | None = None
        self._cluster: Overview | None = None
        self._redis_error = ""

    @property
    def viewers(self) -> int:
        """How many viewers there are."""
        return len(self._viewers)

    @contextlib.asynccontextmanager
    async def viewing(self) -> AsyncIterator[asyncio.Event]:
        """Register a viewer; the event is set when something changed."""
        news = asyncio.Event()
        self._viewers[news] = asyncio.get_running_loop()
        try:
            yield news
        finally:
            del self._viewers[news]
            if not self._viewers:
                self._view = None
                connection, self._connection = self._connection, contextlib.AsyncExitStack()
                await connection.aclose()

    def _on_tokens(self, event: Event) -> None:
        """Count tokens, from any thread."""
        if isinstance(event, TokensUsed):
            self._tokens[event.work, event.use] += event.tokens

    def _on_event(self, event: Event) -> None:
        """Record an event, from any thread, and wake the viewers."""
        self._history.on_event(event)
        if isinstance(event, AttemptFailed):
            return
        self.changes += 1
        for news, loop in list(self._viewers.items()):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(news.set)

    # ------------------------------------------------------------------ snapshot

    async def snapshot(self) -> dict[str, Any]:
        """Everything the page shows. Durations in seconds, times in seconds since the epoch."""
        registry = self._registry
        is_shared = registry.settings.redis_url is not None
        if is_shared:
            await self._fetch_from_redis()
        rows = await dependency_rows(registry, self._cluster, self._history)
        return {
            "at": time.time(),
            "process": {"host": socket.gethostname(), "pid": os.getpid(), "version": __version__},
            "headline": headline(rows),
            "dependencies": rows[:_MOST],
            "omitted": self._count() - len(rows[:_MOST]),
            "changes": self._history.to_json(),
            "drain": self._drain(),
            "redis": self._redis() if is_shared else None,
            "workers": self._workers(),
            "overrides": self._overrides(),
            "tokens": [
                {"work": work, "use": use, "count": count}
                for (work, use), count in sorted(self._tokens.items())
            ],
        }

    def _count(self) -> int:
        """How many dependencies there are in all."""
        names = {guard.name for guard in self._registry}
        return len(names.union(self._found.breakers if self._cluster is not None else ()))

    def _drain(self) -> dict[str, Any] | None:
        progress = drain_of(self._registry)
        if progress is None or progress.phase is Phase.RUNNING:
            closed = self._registry.gate.is_closed
            if not closed:
                return None
            return {"phase": "draining", "reason": "", "seconds_left": None, "in_flight": 0}
        return {
            "phase": progress.phase.value,
            "reason": progress.reason,
            "seconds_left": progress.left,
            "in_flight": sum(progress.in_flight.values()),
        }

    def _redis(self) -> dict[str, Any]:
        link = self._registry.link
        return {
            "error": self._redis_error,
            "is_up": not self._redis_error,
            "round_trip": link.round_trip if link is not None and link.is_up else None,
        }

    def _workers(self) -> list[dict[str, Any]]:
        workers = self._cluster.workers if self._cluster is not None else []
        return [
            {"host": worker.host, "pid": worker.pid, "diverged": list(worker.diverged)}
            for worker in workers[:_MOST]
        ]

    def _overrides(self) -> list[dict[str, str]]:
        overrides = self._cluster.overrides if self._cluster is not None else {}
        return [
            {"name": name, "value": it.value, "reason": it.reason}
            for name, it in list(overrides.items())[:_MOST]
        ]

    async def _fetch_from_redis(self) -> None:
        async with self._lock:
            now = time.monotonic()
            if now < self._fetch_at:
                return
            try:
                self._cluster = await within(_FETCH_TIMEOUT, self._fetch(now))
                self._redis_error = ""
            except (*REDIS_FAILURES, TimeoutError) as error:
                self._cluster = None
                self._redis_error = trouble_with_redis(self._registry.settings, error)
                self._search_at = 0.0
            ended = time.monotonic()
            self._fetch_at = ended + min(max(_FRESH, (ended - now) * _REST), _LONGEST_REST)

    async def _fetch(self, now: float) -> Overview:
        view = await self._connected()
        if now >= self._search_at:
            await self._search(view, now)
        earlier = {} if self._cluster is None else self._cluster.breakers
        seconds = _BREAKERS if len(earlier) >= len(self._found.breakers) else _FIRST_BREAKERS
        return await view.fetch(self._found, earlier=earlier, seconds=seconds)

    async def _search(self, view: ClusterView, now: float) -> None:
        """Find breakers and workers in Redis."""
        try:
            self._found = await within(_SEARCH_TIMEOUT, view.discover(_MOST_FOUND))
        except TimeoutError:  # millions of keys: show this process's breakers only
            self._found = Discovery([guard.name for guard in self._registry], [])
        took = time.monotonic() - now
        self._search_at = now + took * _SEARCH_REST

    async def _connected(self) -> ClusterView:
        if self._view is None:
            view = open_cluster(self._registry.settings, self._policy_of)
            self._view = await self._connection.enter_async_context(view)
        return self._view

    def _policy_of(self, name: str) -> BreakerPolicy:
        """As `breaker_policy`, cached until the settings change: thousands take long to resolve."""
        settings = self._registry.effective
        if settings is not self._policies_of or len(self._policies) > _MOST_FOUND:
            self._policies_of, self._policies = settings, {}
        if (guard := self._registry.find(name)) is not None:
            return guard.policy.effective_breaker
        if (policy := self._policies.get(name)) is None:
            policy = self._policies[name] = settings.policy_for(name).effective_breaker
        return policy


def breaker_policy(registry: Guards, name: str) -> BreakerPolicy:
    """The policy of a breaker, also of one that only other workers have."""
    if (guard := registry.find(name)) is not None:
        return guard.policy.effective_breaker
    return registry.effective.policy_for(name).effective_breaker


def drain_of(registry: Guards) -> Progress | None:
    """Progress of the running loop's drain; None without a coordinator.

    Status-page streams do not count as work in flight: otherwise drain and viewer would wait for
    each other.
    """
    coordinator: Coordinator | None = registry.coordinators.get(asyncio.get_running_loop())
    if coordinator is None:
        return None
    progress = coordinator.progress
    work = {name: n for name, n in progress.in_flight.items() if not name.startswith(_VIEWER)}
    return replace(progress, in_flight=work)
