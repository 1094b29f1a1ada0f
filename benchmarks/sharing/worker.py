"""One of the processes that share a breaker; times are the machine's monotonic clock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import resource
import time
from array import array
from typing import Any

from lightrag_resilience import CallRejected, Guards
from lightrag_resilience.events import Event, StateChanged
from lightrag_resilience.shared_state.shared_breaker import SharedBreaker
from lightrag_resilience.testing.command_process import run_commands

NAME = "llm.benchmark"
_LONGEST = 10.0  # seconds to wait for a state
_SIGMA = 0.5  # of the tokens that calls use


class Worker:
    def __init__(self) -> None:
        self._guards = Guards()
        self._guard = self._guards.get(NAME)
        self._guards.events.subscribe(self._on_event, StateChanged)
        self._states: dict[str, float] = {}
        self._probes = self._made = self._refused = self._wrong = 0
        self._durations = array("d")
        self._takes = 0.0
        self._fails = False
        self._spent: list[tuple[float, float]] = []
        self._booked = 0
        self._callers: list[asyncio.Task[None]] = []

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self._states[event.new] = time.monotonic()

    async def _dependency(self, **_: Any) -> dict[str, int]:
        self._made += 1
        cost = int(self._booked * random.lognormvariate(-(_SIGMA**2) / 2, _SIGMA))
        self._spent.append((time.monotonic(), cost or 1))
        self._probes += self._guard.breaker.state.value == "half-open"
        if self._takes:
            await asyncio.sleep(self._takes)
        if self._fails:
            raise ConnectionRefusedError("made up")
        return {"total_tokens": cost}

    async def _call(self, *, guarded: bool = True) -> None:
        try:
            if guarded:
                await self._guard.call(self._dependency, max_tokens=self._booked)
            else:
                await self._dependency()
        except CallRejected:
            self._refused += 1
        except ConnectionRefusedError:
            pass
        except Exception:  # noqa: BLE001 - none is expected, each is counted
            self._wrong += 1

    # ------------------------------------------------------------------ commands

    async def behave(self, *, fails: bool = False, takes: float = 0.0) -> None:
        """What the dependency does, and for how many seconds."""
        self._fails, self._takes = fails, takes

    async def use_tokens(self, booked: int) -> None:
        """Each call books so many tokens, and uses others with the same mean."""
        self._booked = booked

    async def trip(self) -> float | None:
        """Fail until the breaker is open; when that was."""
        self._fails = True
        for _ in range(100):
            if self._guard.breaker.state.value == "open":
                break
            await self._call()
        self._fails = False
        return self._states.get("open")

    async def refuses_since(self) -> float | None:
        """When the breaker opened, and a call was refused by it; None if that never was."""
        if not await self._is("open"):
            return None
        before = self._refused
        await self._call()
        return self._states["open"] if self._refused == before + 1 else None

    async def is_in(self, state: str) -> float | None:
        """Wait for a state, 10 s at the most; when it began."""
        return self._states.get(state, 0.0) if await self._is(state) else None

    async def is_connected(self) -> bool:
        """Wait for Redis."""
        breaker = self._guard.breaker
        if not isinstance(breaker, SharedBreaker):
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST):
                while not breaker._sync.connected:  # noqa: ASYNC110, SLF001
                    await asyncio.sleep(0.001)
                return True
        return False

    async def control(self, how: str, **details: Any) -> float:
        """Open or close the breaker by hand; when that was."""
        getattr(self._guard.breaker, how)(**details)
        return time.monotonic()

    async def calls(self, number: int) -> float:
        """Make calls, one after the other; the seconds that took."""
        began = time.perf_counter()
        for _ in range(number):
            await self._guard.call(self._dependency)
        return time.perf_counter() - began

    async def refusals(self, number: int) -> float:
        """Make calls that are refused, one after the other; the seconds that took."""
        began = time.perf_counter()
        for _ in range(number):
            await self._call()
        return time.perf_counter() - began

    async def begin(self, callers: int, pause: float = 0.0, *, guarded: bool = True) -> None:
        """Call again and again, until `end`."""

        async def call_on() -> None:
            while True:
                began = time.perf_counter()
                await self._call(guarded=guarded)
                self._durations.append(time.perf_counter() - began)
                await asyncio.sleep(pause)

        self._callers = [asyncio.create_task(call_on()) for _ in range(callers)]

    async def take(self) -> dict[str, Any]:
        """What was counted since last time; durations of calls in seconds."""
        report = {
            "made": self._made,
            "probes": self._probes,
            "refused": self._refused,
            "wrong": self._wrong,
            "durations": self._durations.tolist(),
            "spent": self._spent,
        }
        self._made = self._probes = self._refused = self._wrong = 0
        self._durations = array("d")
        self._spent = []
        return report

    async def end(self) -> dict[str, Any]:
        """End what `begin` began."""
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        return await self.take()

    async def lag(self, seconds: float) -> list[float]:
        """How much later than asked for the loop runs a timer, in seconds, every 2 ms."""
        loop = asyncio.get_running_loop()
        lags = []
        end = loop.time() + seconds
        while (due := loop.time() + 0.002) < end:
            await asyncio.sleep(0.002)
            lags.append(loop.time() - due)
        return lags

    async def busy(self) -> float:
        """Seconds of processor time so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    async def _is(self, state: str) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST):
                while self._guard.breaker.state.value != state:  # noqa: ASYNC110 - lapses silently
                    await asyncio.sleep(0.0005)
                return True
        return False


if __name__ == "__main__":
    logging.disable()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run_commands(Worker()))
