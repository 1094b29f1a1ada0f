"""lightrag_resilience with the policy of an LLM, in each of its forms.

Only the waits between attempts are left out, so that the checks are quick, and a break lasts
longer than a measurement; neither is on the path that is measured.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import Any

from benchmarks.stack import Call, Setup, Stack
from lightrag_resilience import (
    AttemptTimeoutError,
    BreakerPolicy,
    CircuitOpenError,
    ConcurrencyPolicy,
    Guards,
    LimitPolicy,
    Policy,
    TimeoutPolicy,
    resilient,
)

_names = (f"llm.{number}" for number in itertools.count())


class _NoVariables:
    """Settings that read no RESILIENCE_* variables: the shell shall not change the figures."""

    ingest_patience = 600.0
    redis_url = None

    def policy_for(self, name: str, base: Policy | None = None) -> Policy:
        return base or Policy.for_name(name)


async def _no_wait(_seconds: float) -> None:
    await asyncio.sleep(0)


def _registry(*, listener: Callable[[object], None] | None = None) -> Guards:
    settings: Any = _NoVariables()
    registry = Guards(settings=settings, sleep=_no_wait)
    if listener is not None:
        registry.events.listen(listener)
    return registry


_silent = _registry()
_announcing = _registry(listener=lambda _event: None)


@functools.lru_cache  # guards of one policy share it, as they do in a program
def _policy(setup: Setup) -> Policy:
    breaker = BreakerPolicy(open_for=setup.open_for, open_max=setup.open_for)
    return Policy.llm(breaker=breaker, timeout=TimeoutPolicy(attempt=setup.timeout, total=300.0))


@functools.lru_cache
def _limited_policy(setup: Setup) -> Policy:
    return _policy(setup).with_changes(
        limit=LimitPolicy(rpm=10_000_000, burst=100_000),
        concurrency=ConcurrencyPolicy(max_concurrent=setup.places),
    )


def _decorated(function: Call, setup: Setup) -> Call:
    return resilient(next(_names), _policy(setup), registry=_silent)(function)


def _with_listener(function: Call, setup: Setup) -> Call:
    return resilient(next(_names), _policy(setup), registry=_announcing)(function)


def _with_limits(function: Call, setup: Setup) -> Call:
    return resilient(next(_names), _limited_policy(setup), registry=_silent)(function)


def _as_block(function: Call, setup: Setup) -> Call:
    """The guard is looked up on each call, as in ``async with guard("llm.openai"):``."""
    name = next(_names)
    _silent.get(name, _policy(setup))

    async def call(number: int) -> int:
        async with _silent.get(name):
            return await function(number)

    return call


def _as_call(function: Call, setup: Setup) -> Call:
    """A guard that is kept, and given the function on each call."""
    return functools.partial(_silent.get(next(_names), _policy(setup)).call, function)


_stack = functools.partial(
    Stack,
    refusal=CircuitOpenError,
    timeout=AttemptTimeoutError,
    window=BreakerPolicy().window_calls,
)

STACKS = [
    _stack(name="ours", protect=_decorated, imports="lightrag_resilience"),
    _stack(name="ours, with a listener", protect=_with_listener),
    _stack(name="ours, with limits", protect=_with_limits, limits_places=True),
    _stack(name="ours, async with guard(…)", protect=_as_block, retries=False),
    _stack(name="ours, guard.call", protect=_as_call),
]
