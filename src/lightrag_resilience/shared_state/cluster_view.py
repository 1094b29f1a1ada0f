"""The state of all breakers, workers and overrides of a cluster, for an operator."""

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

_KEYS_A_SCAN = 500
_A_SLICE = 8  # breakers or workers in one command: 1 to 2 ms of the event loop
_MAX_KEY = 4096  # bytes
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Overview:
    """The cluster at one moment.

    Attributes:
        breakers: By name; those used in the last ten minutes, or not closed.
        workers: Those that sent a heartbeat in the last ten seconds.
        overrides: By variable.
    """

    breakers: dict[str, Description]
    workers: list[Presence]
    overrides: dict[str, Override] = field(default_factory=dict)

    @property
    def health(self) -> dict[str, Health]:
        """The health of each dependency as its callers see it."""
        diverged = Counter(name for worker in self.workers for name in worker.diverged)
        return {
            name: health_of(
                name,
                state=it.now.state.value,
                reason=it.now.reason,
                tally=it.tally,
                diverged=diverged[name],
            )
            for name, it in self.breakers.items()
        }

    @property
    def is_well(self) -> bool:
        """Whether every caller of every dependency is served."""
        return not self.troubled and all(health.is_well for health in self.health.values())

    @property
    def troubled(self) -> list[str]:
        """Names of breakers that are not closed in some worker."""
        diverged = {name for worker in self.workers for name in worker.diverged}
        return sorted(
            diverged
            | {name for name, it in self.breakers.items() if it.now.state is not State.CLOSED}
        )


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a scan over all keys of a Redis found.

    Attributes:
        breakers: Names.
        workers: Keys of their heartbeats.
    """

    breakers: list[str]
    workers: list[bytes]


class ClusterView:
    """Reads the state of all workers' breakers, and forces it.

    Args:
        client: Of their Redis; the caller closes it.
        prefix: Of their keys.
        policy_of: The policy of a breaker, the same as in the workers.
    """

    def __init__(
        self, client: RedisClient, prefix: str, policy_of: Callable[[str], BreakerPolicy]
    ) -> None:
        self._client: Any = client
        self._prefix = prefix
        self._policy_of = policy_of
        self._runner = ScriptRunner(client, "operator")

    async def discover(self, most: float = math.inf) -> Discovery:
        """Scan for breakers and workers, for at most `most` of each.

        Raises:
            RedisError: Redis cannot be used.
        """
        breakers: set[str] = set()
        async for key in self._keys(Keys.every_state(self._prefix)):
            name = Keys.name_in_state(key, self._prefix) if len(key) <= _MAX_KEY else ""
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
        """Fetch the present state of all that was found.

        Breakers are fetched in slices, so that the event loop is not blocked: first those that
        are new, then those that are not closed. When the time is over, the others keep their
        earlier description, and come first the next time.

        Args:
            found: What to fetch; None scans for it.
            earlier: The breakers of the previous fetch.
            seconds: The time for fetching; one slice is always fetched.

        Raises:
            RedisError: Redis cannot be used.
            WireError: An answer is malformed.
        """
        if found is None:
            found = await self.discover()
        until = time.monotonic() + seconds
        workers: list[Presence] = []
        for keys in _slices(found.workers):
            workers += await self._runner.presences(keys)
        workers.sort(key=lambda worker: (worker.host, worker.pid))
        overrides: dict[str, Override] = {}
        with suppress(WireError):  # workers ignore malformed overrides, too
            overrides = (await self.overrides()).valid
        names_found = set(found.breakers)
        breakers = {name: it for name, it in (earlier or {}).items() if name in names_found}
        for names in _slices(_by_urgency(found.breakers, breakers)):
            described = await self._runner.descriptions([self._ref(name) for name in names])
            for name, it in zip(names, described, strict=True):
                breakers.pop(name, None)
                if it is not None:
                    breakers[name] = (
                        it  # last: dicts keep order, and the longest unfetched comes first
                    )
            if time.monotonic() >= until:
                break
        return Overview(breakers, workers, overrides)

    async def overrides(self) -> StoredOverrides:
        """The settings that are overridden in all workers.

        Raises:
            RedisError: Redis cannot be used.
            WireError: The hash of overrides is malformed.
        """
        return await self._runner.overrides(self._prefix)

    async def override(self, variable: str, override: Override | None) -> None:
        """Override a variable in all workers; None removes the override.

        Raises:
            RedisError: Redis cannot be used.
        """
        await self._runner.override(self._prefix, variable, override)

    async def force_state(
        self, name: str, state: State, reason: str, *, open_for: float | None = None
    ) -> Description:
        """Force the state of a breaker in all workers, and describe it afterwards.

        Args:
            name: The breaker.
            state: Its new state.
            reason: Shown to operators.
            open_for: Seconds; None for as long as the policy says.

        Raises:
            RedisError: Redis cannot be used.
        """
        seconds = self._policy_of(name).breaks().first if open_for is None else open_for
        ref = self._ref(name)
        await self._runner.force_state(ref, state, reason, open_for=seconds)
        return await self._runner.describe(ref)

    def _keys(self, pattern: str) -> AsyncIterator[bytes]:
        keys: AsyncIterator[bytes] = self._client.scan_iter(match=pattern, count=_KEYS_A_SCAN)
        return keys

    def _ref(self, name: str) -> BreakerRef:
        policy = policy_as_json(self._policy_of(name))
        return BreakerRef(self._prefix, name, policy)


def _by_urgency(names: Iterable[str], known: Mapping[str, Description]) -> list[str]:
    """New breakers, then those not well, then the others, the longest unfetched first."""
    new = [name for name in names if name not in known]
    ill = [name for name, it in known.items() if not it.is_well]
    return [*new, *ill, *(name for name, it in known.items() if it.is_well)]


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + _A_SLICE] for at in range(0, len(items), _A_SLICE))


def to_json(seen: Overview) -> dict[str, Any]:
    """The cluster as JSON for programs; times in seconds."""
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
            {"host": worker.host, "pid": worker.pid, "diverged": list(worker.diverged)}
            for worker in seen.workers
        ],
        "overrides": {
            name: {"value": override.value, "reason": override.reason}
            for name, override in seen.overrides.items()
        },
    }
