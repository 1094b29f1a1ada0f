"""What all workers together know, gathered for an operator."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.policies import BreakerPolicy
from lightrag_resilience.health import Health, health_of
from lightrag_resilience.redis_client.client import RedisClient
from lightrag_resilience.text import LONGEST_TEXT

from .messages import (
    Description,
    Keys,
    Override,
    Presence,
    StoredOverrides,
    WireError,
    policy_as_json,
)
from .script_runner import BreakerRef, ScriptRunner

__all__ = ["ClusterView", "Discovery", "Overview", "to_json"]

_A_PAGE = 500  # keys that Redis looks at in one go
_A_SLICE = 8  # breakers or workers asked for in one go: 1 to 2 ms of the event loop
_LONGEST_KEY = 4096  # bytes
T = TypeVar("T")


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
    def health(self) -> dict[str, Health]:
        """How each dependency is for who calls it."""
        alone = Counter(name for worker in self.workers for name in worker.alone)
        return {
            name: health_of(
                name,
                state=it.now.state.value,
                reason=it.now.reason,
                tally=it.tally,
                diverged=alone[name],
            )
            for name, it in self.breakers.items()
        }

    @property
    def is_well(self) -> bool:
        """Whether every caller of every dependency is served."""
        return not self.troubled and all(health.is_well for health in self.health.values())

    @property
    def troubled(self) -> list[str]:
        """Breakers that are not closed, somewhere."""
        alone = {name for worker in self.workers for name in worker.alone}
        return sorted(
            alone | {name for name, it in self.breakers.items() if it.now.state is not State.CLOSED}
        )


@dataclass(frozen=True, slots=True)
class Discovery:
    """What there is to look at: all keys of a Redis had to be gone through to find it.

    Attributes:
        breakers: Their names.
        workers: The keys of their presences.
    """

    breakers: list[str]
    workers: list[bytes]


class ClusterView:
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
        self._store = ScriptRunner(client, "operator")

    async def discover(self, most: float = math.inf) -> Discovery:
        """Find what there is; of breakers, and of workers, so many at the most.

        Raises:
            RedisError: Redis cannot be used.
        """
        breakers: set[str] = set()
        async for key in self._keys(Keys.every_state(self._prefix)):
            name = Keys.name_in_state(key, self._prefix) if len(key) <= _LONGEST_KEY else ""
            if name.isprintable() and 0 < len(name) <= LONGEST_TEXT:
                breakers.add(name)
            if len(breakers) >= most:
                break
        workers: set[bytes] = set()
        async for key in self._keys(Presence.key(self._prefix, "*")):
            workers.add(key)
            if len(workers) >= most:
                break
        return Discovery(sorted(breakers), list(workers))

    async def fetch(
        self,
        found: Discovery | None = None,
        *,
        earlier: Mapping[str, Description] | None = None,
        seconds: float = math.inf,
    ) -> Overview:
        """Gather what there is, or how what was found lately is now.

        It is asked for in slices, between which the event loop goes on. Those that were never
        asked for, and those that were not closed, come first; when the time is over, the others
        are as they were earlier, and are the first to be asked for the next time.

        Args:
            found: What there is to look at; None searches for it.
            earlier: The breakers of the last look.
            seconds: How long it goes on asking, at least for one slice.

        Raises:
            RedisError: Redis cannot be used.
            WireError: What stands there is not ours.
        """
        if found is None:
            found = await self.discover()
        until = time.monotonic() + seconds
        workers: list[Presence] = []
        for keys in _slices(found.workers):
            workers += await self._store.presences(keys)
        workers.sort(key=lambda worker: (worker.host, worker.pid))
        overrides: dict[str, Override] = {}
        with suppress(WireError):  # workers ignore what is not ours, too
            overrides = (await self.overrides()).valid
        there = set(found.breakers)
        breakers = {name: it for name, it in (earlier or {}).items() if name in there}
        for names in _slices(_in_turn(found.breakers, breakers)):
            described = await self._store.descriptions([self._subject(name) for name in names])
            for name, it in zip(names, described, strict=True):
                breakers.pop(name, None)
                if it is not None:
                    breakers[name] = it  # behind those that were asked for earlier
            if time.monotonic() >= until:
                break
        return Overview(breakers, workers, overrides)

    async def overrides(self) -> StoredOverrides:
        """The variables that have other values in all workers.

        Raises:
            RedisError: Redis cannot be used.
            WireError: What stands there is not ours.
        """
        return await self._store.overrides(self._prefix)

    async def override(self, variable: str, override: Override | None) -> None:
        """Give a variable another value in all workers, or None its own again.

        Raises:
            RedisError: Redis cannot be used.
        """
        await self._store.override(self._prefix, variable, override)

    async def force_state(
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
        await self._store.force_state(subject, state, reason, open_for=seconds)
        return await self._store.describe(subject)

    def _keys(self, pattern: str) -> AsyncIterator[bytes]:
        keys: AsyncIterator[bytes] = self._client.scan_iter(match=pattern, count=_A_PAGE)
        return keys

    def _subject(self, name: str) -> BreakerRef:
        policy = policy_as_json(self._policy_of(name))
        return BreakerRef(self._prefix, name, policy)


def _in_turn(names: Iterable[str], known: Mapping[str, Description]) -> list[str]:
    """Breakers that were never asked for, then those not well, then the longest not asked for."""
    new = [name for name in names if name not in known]
    ill = [name for name, it in known.items() if not it.is_well]
    return [*new, *ill, *(name for name, it in known.items() if it.is_well)]


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + _A_SLICE] for at in range(0, len(items), _A_SLICE))


def to_json(seen: Overview) -> dict[str, Any]:
    """The cluster for a program; times in seconds."""
    health = seen.health
    return {
        "breakers": [
            {
                "name": name,
                "state": it.now.state.value,
                "reason": it.now.reason,
                "retry_after": it.now.remaining if it.now.state is State.OPEN else None,
                "opens": it.now.opens,
                "condition": health[name].condition,
                "health": str(health[name]),
                "calls": it.tally.calls,
                "failed": it.tally.failed,
                "causes": dict(it.tally.causes),
                "last_failure": it.tally.last,
                "slow": it.slow,
                "workers": it.workers,
                "probes": it.probes,
                "since": it.since,
            }
            for name, it in seen.breakers.items()
        ],
        "workers": [
            {"host": worker.host, "pid": worker.pid, "diverged": list(worker.alone)}
            for worker in seen.workers
        ],
        "overrides": {
            name: {"value": override.value, "reason": override.reason}
            for name, override in seen.overrides.items()
        },
    }
