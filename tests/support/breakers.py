"""A breaker with a clock of the test."""

from __future__ import annotations

from typing import Any

import pytest

from lightrag_resilience import (
    BreakerPolicy,
    CircuitOpenError,
)
from lightrag_resilience.breakers import Breaker
from lightrag_resilience.events import Events


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.now


def breaker(clock: Clock | None = None, events: Events | None = None, **fields: Any) -> Breaker:
    policy = BreakerPolicy(**({"consecutive_failures": 2} | fields))
    return Breaker("llm.openai", policy, events=events, clock=clock or Clock())


def refusal_of(made: Breaker) -> CircuitOpenError:
    with pytest.raises(CircuitOpenError) as refused:
        made.acquire()
    return refused.value


def trip(made: Breaker) -> None:
    for _ in range(2):
        made.on_failure(made.acquire(), 0.1)
