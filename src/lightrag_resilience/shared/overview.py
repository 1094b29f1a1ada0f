"""What all workers together know, gathered for an operator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lightrag_resilience._circuit import State
from lightrag_resilience.policy import BreakerPolicy

from .client import RedisClient
from .store import Store, Subject
from .wire import (
    Description,
    Keys,
    Override,
    Presence,
    StoredOverrides,
    WireError,
    policy_as_json,
)

__all__ = ["Cluster", "Found", "Overview", "as_data"]

_A_PAGE = 1000  # keys that Redis looks at in one go


@dataclass(frozen=True, slots=True)
class Overview:
    """The cluster at one moment.

    Attributes:
        breakers: By name; those that were used in the last ten minutes, or are not closed.
        workers: Those that showed themselves in the last ten seconds.
        overrides: Variables that have other values in all workers.
    """

    breakers: dict[str, Description]
    workers: list[Presence]
    overrides: dict[str, Override] = field(default_factory=dict)

    @property
    def troubled(self) -> list[str]:
        """Breakers that are not closed, somewhere."""
        alone = {name for worker in self.workers for name in worker.alone}
        return sorted(
            alone | {name for name, it in self.breakers.items() if it.now.state is not State.CLOSED}
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What there is to look at: all keys of a Redis had to be gone through to find it.

    Attributes:
        breakers: Their names.
        workers: The keys of their presences.
    """

    breakers: list[str]
    workers: list[bytes]


class Cluster:
    """Looks at and steers the breakers of all workers.

    Args:
        client: Of their Redis.
        prefix: Of their keys.
        policy_of: The policy of a breaker, as the workers have it.
    """

    def __init__(
        self, client: RedisClient, prefix: str, policy_of: Callable[[str], BreakerPolicy]
    ) -> None:
        self._client: Any = client
        self._prefix = prefix
        self._policy_of = policy_of
        self._store = Store(client, "operator")

    async def find(self) -> Found:
        """Find what there is.

        Raises:
            RedisError: Redis cannot be used.
        """
        states = await self._keys(Keys.every_state(self._prefix))
        names = {Keys.name_in_state(key, self._prefix) for key in states}
        workers = await self._keys(Presence.key(self._prefix, "*"))
        return Found(sorted(filter(str.isprintable, names)), workers)

    async def look(self, found: Found | None = None) -> Overview:
        """Gather what there is, or how what was found lately is now.

        Raises:
            RedisError: Redis cannot be used.
            WireError: What stands there is none of ours.
        """
        if found is None:
            found = await self.find()
        looks = (self._store.describe(self._subject(name)) for name in found.breakers)
        described = await asyncio.gather(*looks)
        workers = []
        for key in found.workers:
            with suppress(WireError):  # it has just ended, or is none of ours
                workers.append(await self._store.presence(key))
        workers.sort(key=lambda worker: (worker.host, worker.pid))
        breakers = dict(zip(found.breakers, described, strict=True))
        overrides: dict[str, Override] = {}
        with suppress(WireError):  # workers ignore what is none of ours, too
            overrides = (await self.overrides()).valid
        return Overview(breakers, workers, overrides)

    async def overrides(self) -> StoredOverrides:
        """The variables that have other values in all workers.

        Raises:
            RedisError: Redis cannot be used.
            WireError: What stands there is none of ours.
        """
        return await self._store.overrides(self._prefix)

    async def override(self, variable: str, override: Override | None) -> None:
        """Give a variable another value in all workers, or None its own again.

        Raises:
            RedisError: Redis cannot be used.
        """
        await self._store.override(self._prefix, variable, override)

    async def steer(
        self, name: str, state: State, reason: str, *, open_for: float | None = None
    ) -> Description:
        """Change the state of a breaker in all workers, and say how it stands then.

        Args:
            name: The breaker.
            state: Its new state.
            reason: Why, for those who wonder.
            open_for: Seconds; None opens it for as long as its policy says.

        Raises:
            RedisError: Redis cannot be used.
        """
        seconds = self._policy_of(name).open_for if open_for is None else open_for
        subject = self._subject(name)
        await self._store.steer(subject, state, reason, open_for=seconds)
        return await self._store.describe(subject)

    async def _keys(self, pattern: str) -> list[bytes]:
        return [key async for key in self._client.scan_iter(match=pattern, count=_A_PAGE)]

    def _subject(self, name: str) -> Subject:
        policy = policy_as_json(self._policy_of(name))
        return Subject(self._prefix, name, policy)


def as_data(seen: Overview) -> dict[str, Any]:
    """The cluster for a program; times in seconds."""
    return {
        "breakers": [
            {
                "name": name,
                "state": it.now.state.value,
                "reason": it.now.reason,
                "retry_after": it.now.remaining if it.now.state is State.OPEN else None,
                "opens": it.now.opens,
                "calls": it.calls,
                "failed": it.failed,
                "slow": it.slow,
                "workers": it.workers,
                "probes": it.probes,
                "since": it.since,
            }
            for name, it in seen.breakers.items()
        ],
        "workers": [
            {"host": worker.host, "pid": worker.pid, "alone": list(worker.alone)}
            for worker in seen.workers
        ],
        "overrides": {
            name: {"value": override.value, "reason": override.reason}
            for name, override in seen.overrides.items()
        },
    }
