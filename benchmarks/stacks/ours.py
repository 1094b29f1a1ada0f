"""lightrag_resilience with the policy of an LLM, in each of its forms.

Every one of them has breaker, retry and its budget, the timeout of an attempt and the deadline of
the call, and a drain finds its calls. "With everything" adds what `protect` and a few variables
give a user: the breaker and the limits of requests and of tokens shared through a real Redis, and
a bulkhead.

Only the waits between attempts are left out, so that the checks are quick, and a break lasts
longer than a measurement; neither is on the path that is measured.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable

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
from lightrag_resilience.config.settings import load_settings

__all__ = ["STACKS", "decorator", "everything", "limited", "make_registry", "stack"]

_names = (f"llm.{number}" for number in itertools.count())


async def _no_wait(_seconds: float) -> None:
    await asyncio.sleep(0)


def make_registry(
    *, redis_url: str = "", listener: Callable[[object], None] | None = None
) -> Guards:
    """Guards without the shell's RESILIENCE_* variables, which shall not change the figures."""
    settings = load_settings({"RESILIENCE_REDIS_URL": redis_url})
    registry = Guards(settings=settings, sleep=_no_wait)
    if listener is not None:
        registry.events.subscribe(listener)
    return registry


def decorator(registry: Guards) -> Callable[[Call, Setup], Call]:
    """Guards each function it is given by a new name."""

    def decorate(function: Call, setup: Setup) -> Call:
        return resilient(next(_names), _policy(setup), registry=registry)(function)

    return decorate


_silent = make_registry()
_announcing = make_registry(listener=lambda _event: None)


@functools.lru_cache  # guards of one policy share it, as they do in a program
def _policy(setup: Setup) -> Policy:
    breaker = BreakerPolicy(open_for=setup.open_for, open_max=setup.open_for)
    return Policy.llm(breaker=breaker, timeout=TimeoutPolicy(attempt=setup.timeout, total=300.0))


@functools.lru_cache
def _limited_policy(setup: Setup) -> Policy:
    return _policy(setup).with_changes(
        limit=LimitPolicy(rpm=10_000_000, burst=100_000),
        concurrency=ConcurrencyPolicy(max_concurrent=setup.max_concurrent),
    )


@functools.lru_cache
def _full_policy(setup: Setup) -> Policy:
    limits = LimitPolicy(
        rpm=10_000_000, burst=100_000, tpm=10_000_000_000, token_burst=1_000_000_000
    )
    return _limited_policy(setup).with_changes(limit=limits)


def limited(function: Call, setup: Setup) -> Call:
    return resilient(next(_names), _limited_policy(setup), registry=_silent)(function)


def everything(registry: Guards) -> Callable[[Call, Setup], Call]:
    """As `decorator`, with limits of requests, of tokens, and of calls at once."""

    def decorate(function: Call, setup: Setup) -> Call:
        return resilient(next(_names), _full_policy(setup), registry=registry)(function)

    return decorate


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


stack = functools.partial(
    Stack,
    refusal=CircuitOpenError,
    timeout=AttemptTimeoutError,
    window=BreakerPolicy().window_calls,
)

STACKS = [
    stack(name="ours", protect=decorator(_silent), imports="lightrag_resilience"),
    stack(name="ours, with a listener", protect=decorator(_announcing)),
    stack(name="ours, with limits", protect=limited, has_bulkhead=True),
    stack(name="ours, async with guard(…)", protect=_as_block, retries=False),
    stack(name="ours, guard.call", protect=_as_call),
]
