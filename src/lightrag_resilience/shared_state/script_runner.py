"""Runs the scripts: one method for each, and nothing that remembers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from redis.asyncio import RedisCluster
from redis.exceptions import NoScriptError, ResponseError

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.redis_client import lua_scripts as scripts
from lightrag_resilience.redis_client.client import lost_connections, publish

from .messages import (
    LETTERS,
    CooldownMessage,
    Description,
    Keys,
    Override,
    Presence,
    Reply,
    Report,
    StoredOverrides,
    WireError,
)
from .reservations import Reservation, ReservationRequest
from .shared_rate_limiter import SharedRateLimiter

__all__ = ["BreakerRef", "ScriptRunner"]

T = TypeVar("T")
_AT_ONCE = 6  # commands under way, fewer than the client has connections
_NEWEST = 0.2  # weight of the newest round trip in their average


class BreakerRef(Keys):
    """What the scripts must know of one breaker to run for it."""

    __slots__ = ("policy", "version")

    def __init__(self, prefix: str, name: str, policy: str) -> None:
        super().__init__(prefix, name)
        self.policy = policy
        self.version = 0


@contextlib.contextmanager
def _of_our_types() -> Iterator[None]:
    """Around a command: a key of another type is not ours, and Redis itself is well."""
    try:
        yield
    except ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            raise WireError("a key of another type") from error
        raise


def _parsed(parse: Callable[[object], T], answer: object) -> T | None:
    """What an answer says; None where it has just ended, or is not ours."""
    try:
        return parse(answer)
    except WireError:
        return None


class ScriptRunner:
    """Scripts on one client. Every method is one round trip, unless the scripts must be loaded.

    Args:
        client: A client of redis-py's asyncio side.
        worker: Names this process; no two may have the same.
        now_ms: Instead of the server's clock, for tests: milliseconds.
    """

    def __init__(self, client: Any, worker: str, now_ms: str = "") -> None:
        self.client = client
        self.worker = worker
        self.now_ms = now_ms
        self.round_trip = 0.0
        """Seconds that a script takes, on the average of the last."""
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def report(self, subject: BreakerRef, report: Report) -> Reply:
        """Send outcomes."""
        return await self._report(subject, report, left=0, opens=0)

    async def restore(self, subject: BreakerRef, left: float, opens: int, reason: str) -> Reply:
        """Send a break with seconds left, which Redis did not hear of or has lost."""
        report = Report(0, tripped=reason)
        return await self._report(subject, report, left=math.ceil(left * 1000), opens=opens)

    async def _report(self, subject: BreakerRef, report: Report, *, left: int, opens: int) -> Reply:
        verdicts = [word for pair in report.verdicts for word in pair]
        counts = (report.calls, report.failed, report.slow)
        seen = (json.dumps(report.causes), report.last)
        arguments = (left, opens, report.batch, *counts, report.tripped, *seen, *verdicts)
        return Reply.parse(await self._run("record_outcomes", subject, arguments))

    async def acquire_probe(self, subject: BreakerRef, token: str) -> Reply:
        """Ask for a probe's place."""
        return Reply.parse(await self._run("acquire_probe", subject, (token,)))

    async def release_probe(self, subject: BreakerRef, token: str) -> None:
        """Give a probe's place back."""
        await self._run("release_probe", subject, (token,))

    async def renew_probe(self, subject: BreakerRef, token: str) -> None:
        """Keep a probe's place, whose call goes on."""
        await self._run("renew_probe", subject, (token,))

    async def read_state(self, subject: BreakerRef) -> Reply:
        """Look."""
        return Reply.parse(await self._run("read_state", subject, ()))

    async def read_states(self, subjects: Sequence[BreakerRef]) -> list[Reply]:
        """Look at many at once; in one round trip, but in a cluster."""
        return [Reply.parse(answer) for answer in await self._run_for_all("read_state", subjects)]

    async def describe(self, subject: BreakerRef) -> Description:
        """Look closely, for people."""
        return Description.parse(await self._run("describe", subject, ()))

    async def descriptions(self, subjects: Sequence[BreakerRef]) -> list[Description | None]:
        """Look closely at many, as `read_states` does; None for what is not ours."""
        answers = await self._run_for_all("describe", subjects)
        return [_parsed(Description.parse, answer) for answer in answers]

    async def force_state(
        self, subject: BreakerRef, state: State, reason: str, *, open_for: float = 0.0
    ) -> Reply:
        """Change the state for the whole cluster, by hand."""
        arguments = (LETTERS[state], round(open_for * 1000), reason)
        return Reply.parse(await self._run("force_state", subject, arguments))

    async def reserve(self, limit: SharedRateLimiter, demand: ReservationRequest) -> Reservation:
        """Book turns of requests and tokens."""
        policy = limit.policy
        limits = (policy.rpm or 0, policy.request_burst, policy.tpm or 0, policy.tokens_at_once)
        pairs = zip(demand.needed, demand.wanted, strict=True)
        turns = (number for pair in pairs for number in pair)
        owed = (round(seconds * 1000) for seconds in demand.owed)
        arguments = (*limits, round(policy.max_wait * 1000), *turns, *demand.given_back, *owed)
        words = (
            scripts.digest("reserve_turns"),
            1,
            limit.key,
            self.now_ms,
            self.worker,
            *arguments,
        )
        return Reservation.parse(await self._evaluate(words))

    async def publish(self, channel: str, cooling: Callable[[], CooldownMessage]) -> None:
        """Tell all workers that a provider asked to wait: for how long is asked when it is sent."""
        async with self._turn():
            await publish(self.client, channel, cooling().as_text())

    async def heartbeat(self, prefix: str, presence: Presence, seconds: float) -> None:
        """Be seen for so many seconds. A Redis that takes this takes reports, too."""
        key = Presence.key(prefix, self.worker)
        async with self._turn():
            await self.client.set(key, presence.as_json(), px=round(seconds * 1000))

    async def presences(self, keys: Sequence[bytes]) -> list[Presence]:
        """Workers that showed themselves there; in one round trip, but in a cluster."""
        if isinstance(self.client, RedisCluster):
            kept = await asyncio.gather(*map(self._kept, keys))
        else:
            async with self._turn(), self.client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.get(key)
                kept = await pipeline.execute(raise_on_error=False)
        found = (_parsed(Presence.parse, each) for each in kept)
        return [presence for presence in found if presence is not None]

    async def _kept(self, key: bytes) -> object:
        async with self._turn():
            try:
                return await self.client.get(key)
            except ResponseError as error:  # a key of another type
                return error

    async def overrides(self, prefix: str) -> StoredOverrides:
        """The variables that have other values in all workers."""
        async with self._turn():
            with _of_our_types():
                return StoredOverrides.parse(await self.client.hgetall(Override.key(prefix)))

    async def override(self, prefix: str, variable: str, override: Override | None) -> None:
        """Give a variable another value in all workers, or None its own again."""
        key = Override.key(prefix)
        async with self._turn():
            if override is None:
                await self.client.hdel(key, variable)
            else:
                await self.client.hset(key, variable, override.as_json())

    async def count_workers(self, prefix: str, seconds: float) -> int:
        """Be counted for so many seconds; how many workers are."""
        details = (self.worker, round(seconds * 1000))
        words = (scripts.digest("heartbeat"), 1, f"{prefix}workers", *details)
        workers = await self._evaluate(words)
        if not isinstance(workers, int) or workers < 1:
            raise WireError("a number of workers that cannot be")
        return workers

    async def _run(self, name: str, subject: BreakerRef, arguments: Iterable[Any]) -> Any:
        return await self._evaluate(self._words(name, subject, arguments))

    async def _run_for_all(self, name: str, subjects: Sequence[BreakerRef]) -> list[Any]:
        if len(subjects) < 2 or isinstance(self.client, RedisCluster):  # noqa: PLR2004
            return list(await asyncio.gather(*(self._run(name, it, ()) for it in subjects)))
        async with self._turn(), self.client.pipeline(transaction=False) as pipeline:
            for subject in subjects:
                pipeline.evalsha(*self._words(name, subject, ()))
            try:
                return list(await pipeline.execute())
            except NoScriptError:
                await self._load()
                for subject in subjects:
                    pipeline.evalsha(*self._words(name, subject, ()))
                return list(await pipeline.execute())

    async def _evaluate(self, words: tuple[Any, ...]) -> Any:
        async with self._turn():
            began = time.perf_counter()
            try:
                answer = await self.client.evalsha(*words)
            except NoScriptError:
                await self._load()
                return await self.client.evalsha(*words)
            self.round_trip += (time.perf_counter() - began - self.round_trip) * _NEWEST
        return answer

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._at_once:
            with lost_connections():
                yield

    def _words(self, name: str, subject: BreakerRef, arguments: Iterable[Any]) -> tuple[Any, ...]:
        keys = (subject.state, subject.window)
        common = (subject.channel, self.now_ms, subject.policy, self.worker, subject.version)
        return (scripts.digest(name), len(keys), *keys, *common, *arguments)

    async def _load(self) -> None:
        for name in scripts.NAMES:
            await self.client.script_load(scripts.source(name))
