"""The adaptive limit, against a provider of known capacity."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.limits.adaptive_limit import AdaptiveLimit

BASE = 1.0  # seconds


def run(  # noqa: PLR0913 - a simulation has many knobs
    limit: AdaptiveLimit,
    capacity: Callable[[int], int],
    *,
    calls: int,
    seed: int,
    throttles: bool,
    demand: int = 10_000,
    begins: float = 0.0,
) -> list[int]:
    """Calls that take what is free at once; the limit after each end."""
    draw = random.Random(seed)
    under_way: list[tuple[float, float, float, bool]] = []
    now, seen = begins, []
    for number in range(calls):
        while len(under_way) < min(limit.value, demand):
            busy = len(under_way) + 1
            most = capacity(number)
            is_refused = throttles and busy > most
            takes = 0.05 if is_refused else BASE * draw.uniform(0.9, 1.1) * max(1.0, busy / most)
            heapq.heappush(under_way, (now + takes, now, takes, is_refused))
            if len(under_way) >= limit.value:
                limit.reached()
        now, started, takes, is_refused = heapq.heappop(under_way)
        if is_refused:
            limit.on_overload(started=started, now=now)
        else:
            limit.on_success(started=started, duration=takes, now=now)
        seen.append(limit.value)
    return seen


def fresh(goal: float | None = None) -> AdaptiveLimit:
    return AdaptiveLimit(smallest=1, largest=100, goal=goal)


@pytest.mark.parametrize(("throttles", "goal"), [(True, None), (False, 1.3 * BASE)])
@pytest.mark.parametrize("seed", range(10))
def test_the_limit_settles_at_the_capacity_of_the_provider(
    seed: int,
    throttles: bool,  # noqa: FBT001 - a parameter of the test
    goal: float | None,
) -> None:
    seen = run(fresh(goal), lambda _: 20, calls=4000, seed=seed, throttles=throttles)
    settled = sorted(seen[1000:])
    assert 15 <= sum(settled) / len(settled) <= 25
    assert settled[len(settled) // 20] >= 14
    assert settled[-len(settled) // 20] <= 26


@pytest.mark.parametrize(("throttles", "goal"), [(True, None), (False, 1.3 * BASE)])
@pytest.mark.parametrize("seed", range(10))
def test_the_limit_follows_a_capacity_that_shrinks_and_grows(
    seed: int,
    throttles: bool,  # noqa: FBT001 - a parameter of the test
    goal: float | None,
) -> None:
    def capacity(number: int) -> int:
        return 5 if 2000 <= number < 3000 else 20

    seen = run(fresh(goal), capacity, calls=6000, seed=seed, throttles=throttles)
    assert max(seen[2300:3000]) <= 8
    assert min(seen[4000:]) >= 13


@pytest.mark.parametrize("seed", range(3))
def test_the_limit_does_not_grow_while_it_is_not_reached(seed: int) -> None:
    limit = fresh()
    before = limit.value
    seen = run(limit, lambda _: 20, calls=500, seed=seed, throttles=True, demand=before - 1)
    assert set(seen) == {before}


def test_calls_in_flight_together_cut_the_limit_once() -> None:
    limit = fresh()
    run(limit, lambda _: 1000, calls=500, seed=1, throttles=True)
    assert limit.value == 100
    for _ in range(60):
        limit.on_overload(started=1_000.0, now=1_001.0)
    assert limit.value == 80
    limit.on_overload(started=1_002.0, now=1_003.0)
    assert limit.value == 64


def test_calls_sent_before_a_cut_do_not_change_the_limit_again() -> None:
    limit = fresh(goal=1.0)
    limit.on_overload(started=10.0, now=11.0)
    held = limit.value
    for _ in range(100):
        limit.reached()
        limit.on_success(started=10.5, duration=9.0, now=12.0)
    assert limit.value == held


@given(
    smallest=st.integers(1, 50),
    more=st.integers(0, 50),
    goal=st.none() | st.floats(0.1, 10),
    ends=st.lists(
        st.tuples(st.booleans(), st.floats(0, 100), st.floats(0, 100), st.booleans()), max_size=300
    ),
)
def test_the_limit_stays_within_its_bounds(
    smallest: int, more: int, goal: float | None, ends: list[tuple[bool, float, float, bool]]
) -> None:
    limit = AdaptiveLimit(smallest=smallest, largest=smallest + more, goal=goal)
    now = 0.0
    for is_overloaded, ago, duration, is_reached in ends:
        now += 1.0
        if is_reached:
            limit.reached()
        if is_overloaded:
            limit.on_overload(started=now - ago, now=now)
        else:
            limit.on_success(started=now - ago, duration=duration, now=now)
        assert smallest <= limit.value <= smallest + more
