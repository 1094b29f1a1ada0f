"""Runs the Lua scripts and the few plain commands: a method each, without state."""

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
_MAX_IN_FLIGHT = 6  # commands: fewer than the client has connections, or redis-py raises
_AS_THE_POLICY_SAYS = 86_400.0  # seconds: no policy has a longer lease
_NEWEST_WEIGHT = 0.2  # weight of the newest round trip in their average


class BreakerRef(Keys):
    """A breaker as the scripts need it: its keys, its policy, the version known here."""

    __slots__ = ("policy", "version")

    def __init__(self, prefix: str, name: str, policy: str) -> None:
        super().__init__(prefix, name)
        self.policy = policy
        self.version = 0


@contextlib.contextmanager
def _malformed_keys() -> Iterator[None]:
    """Around a command: a key of another type is malformed data, not an outage of Redis."""
    try:
        yield
    except ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            raise WireError("a key of another type") from error
        raise


def _parsed(parse: Callable[[object], T], answer: object) -> T | None:
    """The parsed answer; None if the key has just expired or is malformed."""
    try:
        return parse(answer)
    except WireError:
        return None


class ScriptRunner:
    """Runs scripts on one client. A method is one round trip, unless scripts must be loaded.

    Args:
        client: A client of `redis.asyncio`.
        worker: Unique id of this process.
        now_ms: Milliseconds, in place of the server's clock; for tests.
    """

    def __init__(self, client: Any, worker: str, now_ms: str = "") -> None:
        self.client = client
        self.worker = worker
        self.now_ms = now_ms
        self.round_trip = 0.0
        """Seconds for one script, as a moving average."""
        self._in_flight = asyncio.Semaphore(_MAX_IN_FLIGHT)

    async def report(self, ref: BreakerRef, report: Report) -> Reply:
        """Report outcomes."""
        return await self._report(ref, report, left=0, opens=0)

    async def restore(self, ref: BreakerRef, left: float, opens: int, reason: str) -> Reply:
        """Write an open state with `left` seconds to go that Redis missed or lost."""
        report = Report(0, tripped=reason)
        return await self._report(ref, report, left=math.ceil(left * 1000), opens=opens)

    async def _report(self, ref: BreakerRef, report: Report, *, left: int, opens: int) -> Reply:
        verdicts = [text for pair in report.verdicts for text in pair]
        counts = (report.calls, report.failed, report.slow)
        seen = (json.dumps(report.causes), report.last)
        arguments = (left, opens, report.batch, *counts, report.tripped, *seen, *verdicts)
        return Reply.parse(await self._run("record_outcomes", ref, arguments))

    async def acquire_probe(
        self, ref: BreakerRef, token: str, lease: float = _AS_THE_POLICY_SAYS
    ) -> Reply:
        """Acquire the permit for a probe, held for at most `lease` seconds without a renewal."""
        return Reply.parse(await self._run("acquire_probe", ref, (token, round(lease * 1000))))

    async def release_probe(self, ref: BreakerRef, token: str) -> None:
        """Release the permit of a probe."""
        await self._run("release_probe", ref, (token,))

    async def renew_probe(
        self, ref: BreakerRef, token: str, lease: float = _AS_THE_POLICY_SAYS
    ) -> None:
        """Renew the lease of a probe whose call still runs, for at most `lease` seconds."""
        await self._run("renew_probe", ref, (token, round(lease * 1000)))

    async def read_state(self, ref: BreakerRef) -> Reply:
        """Read the state."""
        return Reply.parse(await self._run("read_state", ref, ()))

    async def read_states(self, refs: Sequence[BreakerRef]) -> list[Reply]:
        """Read many states, in one round trip unless Redis is a cluster."""
        return [Reply.parse(answer) for answer in await self._run_for_all("read_state", refs)]

    async def describe(self, ref: BreakerRef) -> Description:
        """Read the state and the window, for operators."""
        return Description.parse(await self._run("describe", ref, ()))

    async def descriptions(self, refs: Sequence[BreakerRef]) -> list[Description | None]:
        """Describe many; None for each that is malformed."""
        answers = await self._run_for_all("describe", refs)
        return [_parsed(Description.parse, answer) for answer in answers]

    async def force_state(
        self, ref: BreakerRef, state: State, reason: str, *, open_for: float = 0.0
    ) -> Reply:
        """Force the state in all workers."""
        arguments = (LETTERS[state], round(open_for * 1000), reason)
        return Reply.parse(await self._run("force_state", ref, arguments))

    async def reserve(self, limit: SharedRateLimiter, request: ReservationRequest) -> Reservation:
        """Reserve turns of requests and tokens."""
        policy = limit.policy
        limits = (policy.rpm or 0, policy.request_burst, policy.tpm or 0, policy.tokens_at_once)
        pairs = zip(request.needed, request.wanted, strict=True)
        turns = (number for pair in pairs for number in pair)
        owed = (round(seconds * 1000) for seconds in request.owed)
        arguments = (*limits, round(policy.max_wait * 1000), *turns, *request.given_back, *owed)
        common = (scripts.digest("reserve_turns"), 1, limit.key, self.now_ms, self.worker)
        return Reservation.parse(await self._evaluate((*common, *arguments)))

    async def publish(self, channel: str, cooling: Callable[[], CooldownMessage]) -> None:
        """Publish a cool-down; `cooling` is called when the message is sent, as time goes on."""
        async with self._command_slot():
            await publish(self.client, channel, cooling().as_text())

    async def heartbeat(self, prefix: str, presence: Presence, seconds: float) -> None:
        """Store this worker's presence for so many seconds; also shows that Redis takes writes."""
        key = Presence.key(prefix, self.worker)
        async with self._command_slot():
            await self.client.set(key, presence.as_json(), px=round(seconds * 1000))

    async def presences(self, keys: Sequence[bytes]) -> list[Presence]:
        """The workers stored under these keys, in one round trip unless Redis is a cluster."""
        if isinstance(self.client, RedisCluster):
            kept = await asyncio.gather(*map(self._get, keys))
        else:
            async with self._command_slot(), self.client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.get(key)
                kept = await pipeline.execute(raise_on_error=False)
        found = (_parsed(Presence.parse, each) for each in kept)
        return [presence for presence in found if presence is not None]

    async def _get(self, key: bytes) -> object:
        async with self._command_slot():
            try:
                return await self.client.get(key)
            except ResponseError as error:  # a key of another type
                return error

    async def overrides(self, prefix: str) -> StoredOverrides:
        """The settings that are overridden in all workers."""
        async with self._command_slot():
            with _malformed_keys():
                return StoredOverrides.parse(await self.client.hgetall(Override.key(prefix)))

    async def override(self, prefix: str, variable: str, override: Override | None) -> None:
        """Override a variable in all workers; None removes the override."""
        key = Override.key(prefix)
        async with self._command_slot():
            if override is None:
                await self.client.hdel(key, variable)
            else:
                await self.client.hset(key, variable, override.as_json())

    async def count_workers(self, prefix: str, seconds: float) -> int:
        """Register this worker for so many seconds, and count all workers."""
        details = (self.worker, round(seconds * 1000))
        arguments = (scripts.digest("heartbeat"), 1, f"{prefix}workers", *details)
        workers = await self._evaluate(arguments)
        if not isinstance(workers, int) or workers < 1:
            raise WireError("an impossible number of workers")
        return workers

    async def _run(self, name: str, ref: BreakerRef, arguments: Iterable[Any]) -> Any:
        return await self._evaluate(self._arguments(name, ref, arguments))

    async def _run_for_all(self, name: str, refs: Sequence[BreakerRef]) -> list[Any]:
        if len(refs) < 2 or isinstance(self.client, RedisCluster):  # noqa: PLR2004
            return list(await asyncio.gather(*(self._run(name, it, ()) for it in refs)))
        async with self._command_slot(), self.client.pipeline(transaction=False) as pipeline:
            for ref in refs:
                pipeline.evalsha(*self._arguments(name, ref, ()))
            try:
                return list(await pipeline.execute())
            except NoScriptError:
                await self._load()
                for ref in refs:
                    pipeline.evalsha(*self._arguments(name, ref, ()))
                return list(await pipeline.execute())

    async def _evaluate(self, arguments: tuple[Any, ...]) -> Any:
        async with self._command_slot():
            began = time.perf_counter()
            try:
                answer = await self.client.evalsha(*arguments)
            except NoScriptError:
                await self._load()
                return await self.client.evalsha(*arguments)
            self.round_trip += (time.perf_counter() - began - self.round_trip) * _NEWEST_WEIGHT
        return answer

    @contextlib.asynccontextmanager
    async def _command_slot(self) -> AsyncIterator[None]:
        async with self._in_flight:
            with lost_connections():
                yield

    def _arguments(self, name: str, ref: BreakerRef, arguments: Iterable[Any]) -> tuple[Any, ...]:
        keys = (ref.state, ref.window)
        common = (ref.channel, self.now_ms, ref.policy, self.worker, ref.version)
        return (scripts.digest(name), len(keys), *keys, *common, *arguments)

    async def _load(self) -> None:
        for name in scripts.NAMES:
            await self.client.script_load(scripts.source(name))
