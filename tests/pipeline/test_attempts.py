"""`Guard.run` writes its first attempt out for speed; `Guard._attempt` makes each further one.

Every case goes through both, which must fill the same slots of a call, publish the same events and
leave breaker, permits and timers the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from lightrag_resilience import ConcurrencyPolicy, LimitPolicy, RateLimitedError, RetryPolicy
from lightrag_resilience.calls.call_context import Call, current_call
from support.guards import down, guard_on_loop, now, published_by

pytestmark = pytest.mark.anyio

_SLOTS = {slot for cls in Call.__mro__ for slot in getattr(cls, "__slots__", ())}
_OF_ONE_WAY = {"_attempt_number", "deadline", "failure"}  # set for retries, or after the attempt


async def returns() -> str:
    return "answer"


async def raises_what_counts() -> str:
    raise down()


async def raises_what_does_not_count() -> str:
    raise ValueError("wrong arguments")


async def raises_a_rejection() -> str:
    raise RateLimitedError("other", 1.0)


async def is_cancelled() -> str:
    raise asyncio.CancelledError


async def takes_too_long() -> str:
    await asyncio.sleep(100.0)
    return "late"


async def streams() -> AsyncIterator[str]:
    async def items() -> AsyncIterator[str]:
        yield "one"
        yield "two"

    return items()


async def streams_and_breaks() -> AsyncIterator[str]:
    async def items() -> AsyncIterator[str]:
        raise down()
        yield "never"

    return items()


STEPS = [
    returns,
    raises_what_counts,
    raises_what_does_not_count,
    raises_a_rejection,
    is_cancelled,
    takes_too_long,
    streams,
    streams_and_breaks,
]
POLICIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "timed": {"attempt_timeout": 5.0},
    "cut short by its deadline": {"attempt_timeout": 50.0, "total_timeout": 9.0},
    "limited": {
        "attempt_timeout": 5.0,
        "limit": LimitPolicy(tpm=6000.0),
        "concurrency": ConcurrencyPolicy(max_concurrent=1),
    },
}


class Attempt:
    """The function of one attempt, which notes what it finds when it is called."""

    def __init__(self, step: Callable[[], Any], policy: dict[str, Any], *, is_probe: bool) -> None:
        retry = RetryPolicy(attempts=2, jitter="none")
        self.guard = guard_on_loop(**policy, retry=retry)
        self.step = step
        self.is_probe = is_probe
        self.found: dict[str, Any] = {}

    def prepare(self) -> None:
        """Just before the attempt, bring the guard into the same state for both ways."""
        if self.is_probe:
            self.guard.breaker.half_open("by the test")
        self.before = self.guard.breaker.snapshot()
        self.events = published_by(self.guard)

    async def __call__(self) -> Any:
        call, guard = current_call.get(), self.guard
        assert call is not None
        self.found = {
            "slots": {slot for slot in _SLOTS - _OF_ONE_WAY if hasattr(call, slot)},
            "values": [getattr(call, slot) for slot in ("name", "parent", "idempotent")],
            "is of the guard": call.guard is guard,
            "stage": (call.stage, call.idle_timer, call.suspend_depth),
            "is admitted": guard._circuit.is_valid(call.admission),
            "has the loop's state": call.loop_state is guard._loop_state,
            "sent": call.started - now(),
            "is registered": list(guard.gate.running) == [call],
            "time": None if call.timer is None else call.due - call.started,
            "tokens": getattr(call, "tokens", None),
        }
        return await self.step()

    async def settled(self, result: Awaitable[Any]) -> dict[str, Any]:
        """What the attempt found, what came of it, and what it left behind."""
        try:
            outcome = await result
            if hasattr(outcome, "__anext__"):
                outcome = [item async for item in outcome]
        except BaseException as error:  # noqa: BLE001 - a cancellation is an outcome, too
            outcome = type(error), str(error)
        after, loop_state = self.guard.breaker.snapshot(), self.guard._loop_state
        assert loop_state is not None
        return self.found | {
            "outcome": outcome,
            "events": [type(event) for event in self.events],
            "counted": (after.calls - self.before.calls, after.failed - self.before.failed),
            "state": (after.state, after.probes),
            "permits": self.guard.occupancy.in_use,
            "running": list(self.guard.gate.running),
            "timers": loop_state.timer is not None and loop_state.timer.running(),
        }


async def by_run(attempt: Attempt) -> dict[str, Any]:
    attempt.prepare()
    return await attempt.settled(attempt.guard.run(attempt, (), {}, once=True))


async def by_attempt(attempt: Attempt) -> dict[str, Any]:
    is_first = True

    async def after_a_failure() -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            raise down()
        return await attempt()

    async def between(_: float) -> None:
        attempt.prepare()

    attempt.guard.sleep = between
    return await attempt.settled(attempt.guard.run(after_a_failure, (), {}))


@pytest.mark.parametrize("is_probe", [False, True], ids=["closed", "half-open"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("step", STEPS, ids=[step.__name__ for step in STEPS])
async def test_the_first_attempt_and_a_further_one_do_the_same(
    step: Callable[[], Any], policy: dict[str, Any], *, is_probe: bool
) -> None:
    one = await by_run(Attempt(step, policy, is_probe=is_probe))
    other = await by_attempt(Attempt(step, policy, is_probe=is_probe))
    assert one["is admitted"]
    assert one == other
