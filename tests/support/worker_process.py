"""A worker for tests: guards one made-up dependency, and does what it reads from its input.

Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from lightrag_resilience import CallRejected, guards
from lightrag_resilience.events import Event, StateChanged
from lightrag_resilience.failures.classifier import Failure, FailureKind
from lightrag_resilience.testing.command_process import run_commands

NAME = "llm.made-up"


class Worker:
    def __init__(self) -> None:
        self.fails = 0.0
        self.takes = 0.0
        self.ran = 0
        self.probes = 0
        self.changes: list[tuple[str, float]] = []
        self.log: list[str] = []
        self.running: list[asyncio.Task[Any]] = []
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.sent_at: list[float] = []
        self.tokens = (0, 0)
        self.throttled_until = 0.0
        self.throttled_for = 0.0
        self.last_refusal = ""
        self.guard: Any = None
        self.background: list[tuple[float, float]] = []

    async def begin(self) -> dict[str, Any]:
        handler = logging.Handler()
        handler.emit = lambda record: self.log.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("lightrag_resilience").addHandler(handler)
        self.guard = guards().get(NAME)
        guards().events.subscribe(self.on_event)
        return {"pid": os.getpid()}

    def on_event(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self.changes.append((event.new, time.monotonic()))

    async def dependency(self, **_: Any) -> Any:
        self.ran += 1
        self.sent_at.append(time.monotonic())
        self.probes += self.guard.breaker.state.value == "half-open"
        if time.monotonic() < self.throttled_until:
            raise self.throttled()
        if self.takes:
            await asyncio.sleep(self.takes)
        failed, self.fails = self.fails >= 1, self.fails - (self.fails >= 1)
        if failed:
            raise ConnectionRefusedError("made up")
        return {"total_tokens": self.tokens[1]} if self.tokens[0] else "fine"

    async def one(self) -> None:
        began = time.perf_counter()
        try:
            await self.guard.call(self.dependency, max_tokens=self.tokens[0])
        except CallRejected as refusal:
            self.counts["refused"] += 1
            self.last_refusal = str(refusal)
        except ConnectionRefusedError:
            self.counts["failed"] += 1
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
            raise
        else:
            self.counts["fine"] += 1
        if not self.takes:
            self.slowest = max(self.slowest, time.perf_counter() - began)

    # ------------------------------------------------------------------ commands

    async def behave(self, fails: float, takes: float = 0.0) -> dict[str, Any]:
        """So many of the next calls fail (1e9: all); each takes so many seconds."""
        self.fails, self.takes = fails, takes
        return {}

    async def call(self, times: int, at_once: int = 1) -> dict[str, Any]:
        """Make calls and wait for them."""
        for begun in range(0, times, at_once):
            await asyncio.gather(*(self.one() for _ in range(min(at_once, times - begun))))
        return self.take()

    async def go_on(self, callers: int, pause: float) -> dict[str, Any]:
        """Call again and again, until halt."""

        async def caller() -> None:
            while True:
                await self.one()
                await asyncio.sleep(pause)

        self.running += [asyncio.create_task(caller()) for _ in range(callers)]
        return {}

    async def halt(self) -> dict[str, Any]:
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        self.running.clear()
        return self.take()

    def take(self) -> dict[str, Any]:
        counted: dict[str, Any] = {"ran": self.ran, "probes": self.probes, "slowest": self.slowest}
        counted["last_refusal"] = self.last_refusal
        counted.update(
            {key: self.counts[key] for key in ("fine", "failed", "refused", "cancelled")}
        )
        self.ran = self.probes = 0
        self.slowest = 0.0
        self.counts.clear()
        return counted

    async def sent(self) -> dict[str, Any]:
        """When calls were sent, since the last request."""
        sent, self.sent_at = self.sent_at, []
        return {"sent": sent}

    async def use_tokens(self, booked: int, used: int) -> dict[str, Any]:
        """Each call books so many tokens, and uses so many."""
        self.tokens = booked, used
        return {}

    async def be_throttled(self, seconds: float) -> dict[str, Any]:
        """One call is answered with a 429."""
        self.throttled_for = seconds

        async def fail() -> None:
            raise self.throttled()

        with contextlib.suppress(ConnectionRefusedError):
            await self.guard.call(fail)
        return {"at": time.monotonic()}

    async def throttle(self, until: float, seconds: float) -> dict[str, Any]:
        """Until then, each call is answered with a 429 that asks to wait so long."""
        self.throttled_until, self.throttled_for = until, seconds
        return {}

    def throttled(self) -> Exception:
        error = ConnectionRefusedError("429")
        error.__resilience_failure__ = Failure(FailureKind.THROTTLED, self.throttled_for)  # type: ignore[attr-defined]
        return error

    async def set_probe(self) -> dict[str, Any]:
        """Probe in the background, by a request that behaves as a call does."""

        async def probe() -> None:
            began = time.monotonic()
            try:
                await self.dependency()
            finally:
                self.background.append((began, time.monotonic()))

        self.guard.set_probe(probe)
        return {}

    async def background_probes(self) -> dict[str, Any]:
        """When each began and ended."""
        return {"spans": self.background}

    async def call_in_a_child(self, times: int) -> dict[str, Any]:
        """Fork, and make calls there."""
        child = os.fork()
        if not child:
            code = 1
            try:
                self.counts.clear()
                code = asyncio.run(self.call(times))["fine"] != times
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        return {"ok": status == 0}

    async def snapshot(self) -> dict[str, Any]:
        breaker = self.guard.breaker
        snapshot = breaker.snapshot()
        return {
            "state": snapshot.state.value,
            "reason": snapshot.reason,
            "opens": snapshot.opens,
            "retry_after": snapshot.retry_after,
            "version": breaker.ref.version,
            "connected": breaker._sync.connected,
            "is_diverged": breaker.is_diverged,
            "changes": self.changes,
            "probes": self.probes,
            "log": self.log,
        }

    async def until(
        self, state: str = "", *, connected: bool | None = None, version: int = 0
    ) -> dict[str, Any]:
        """Wait for it, or a later version, 10 s at the most."""
        for _ in range(10_000):
            breaker = self.guard.breaker
            is_there = not state or breaker.state.value == state
            is_there = is_there and breaker.ref.version >= version
            if is_there and connected in {None, breaker._sync.connected}:
                return {"at": time.monotonic(), **await self.snapshot()}
            await asyncio.sleep(0.001)
        return {"at": None, **await self.snapshot()}

    async def until_workers(self, number: int) -> dict[str, Any]:
        """Wait until so many are known, 10 s at the most."""
        for _ in range(10_000):
            if self.guard.breaker._sync.workers() == number:
                return {"ok": True}
            await asyncio.sleep(0.001)
        return {"ok": False}

    async def until_log(self, text: str) -> dict[str, Any]:
        """Wait until the log holds a text, 10 s at the most."""
        for _ in range(10_000):
            if any(text in line for line in self.log):
                return {"ok": True}
            await asyncio.sleep(0.001)
        return {"ok": False}

    async def until_policy(self, part: str, field: str, value: Any) -> dict[str, Any]:
        """Wait until a field of the policy has a value, 10 s at the most."""
        for _ in range(10_000):
            if getattr(getattr(self.guard.policy, part), field) == value:
                return {"ok": True, "log": self.log}
            await asyncio.sleep(0.001)
        return {"ok": False, "log": self.log}

    async def control(self, how: str, **rest: Any) -> dict[str, Any]:
        getattr(self.guard.breaker, how)(**rest)
        return {"at": time.monotonic()}

    async def close(self) -> dict[str, Any]:
        guards().close()
        return {}


def run(reads: Connection, writes: Connection, variables: Mapping[str, str]) -> None:
    """Be a worker with these variables, in a process that was forked for it."""
    os.environ.clear()
    os.environ.update(variables)
    sys.stdin = os.fdopen(reads.fileno(), encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(writes.fileno(), "w", encoding="utf-8", closefd=False)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run_commands(Worker()))
