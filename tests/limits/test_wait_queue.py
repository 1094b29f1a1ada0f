"""The queue before a bulkhead: which waiter is next, and which is evicted."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightrag_resilience.limits.priority import Priority
from lightrag_resilience.limits.wait_queue import PriorityWaitQueue

INTERACTIVE, BACKGROUND = Priority.INTERACTIVE, Priority.BACKGROUND
LEVELS = st.sampled_from(Priority)


def line(*levels: Priority, most: int = 100) -> PriorityWaitQueue[str]:
    waiters: PriorityWaitQueue[str] = PriorityWaitQueue(most)
    counts = dict.fromkeys(Priority, 0)
    for level in levels:
        counts[level] += 1
        waiters.push(f"{level.name[0]}{counts[level]}", level)
    return waiters


def served(waiters: PriorityWaitQueue[str]) -> list[str]:
    return list(iter(waiters.pop, None))


def test_interactive_waiters_go_first_in_order_of_arrival() -> None:
    waiters = line(BACKGROUND, INTERACTIVE, BACKGROUND, INTERACTIVE)
    assert served(waiters) == ["I1", "I2", "B1", "B2"]


def test_one_background_waiter_follows_four_interactive_ones() -> None:
    waiters = line(*[BACKGROUND] * 2, *[INTERACTIVE] * 9)
    expected = ["I1", "I2", "I3", "I4", "B1", "I5", "I6", "I7", "I8", "B2", "I9"]
    assert served(waiters) == expected


def test_an_interactive_waiter_evicts_the_newest_background_one_of_a_full_queue() -> None:
    waiters = line(BACKGROUND, BACKGROUND, INTERACTIVE, most=3)
    assert waiters.accepts(INTERACTIVE)
    assert not waiters.accepts(BACKGROUND)
    assert waiters.push("new", INTERACTIVE) == "B2"
    assert served(waiters) == ["I1", "new", "B1"]


def test_a_full_queue_of_interactive_waiters_accepts_none() -> None:
    waiters = line(INTERACTIVE, INTERACTIVE, most=2)
    assert not any(map(waiters.accepts, Priority))


def test_a_queue_of_size_zero_accepts_none() -> None:
    assert not any(map(PriorityWaitQueue[str](0).accepts, Priority))


class Line(RuleBasedStateMachine):
    """Against two plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 6
        self.waiters: PriorityWaitQueue[int] = PriorityWaitQueue(self.most)
        self.lines: dict[Priority, list[int]] = {level: [] for level in Priority}
        self.names = itertools.count()
        self.interactive_in_a_row = 0

    @rule(level=LEVELS)
    def come(self, level: Priority) -> None:
        is_full = sum(map(len, self.lines.values())) >= self.most
        has_lesser = level is INTERACTIVE and bool(self.lines[BACKGROUND])
        assert self.waiters.accepts(level) == (not is_full or has_lesser)
        if not self.waiters.accepts(level):
            return
        name = next(self.names)
        expected = self.lines[BACKGROUND].pop() if is_full else None
        assert self.waiters.push(name, level) == expected
        self.lines[level].append(name)

    @rule()
    def serve(self) -> None:
        interactive, background = self.lines[INTERACTIVE], self.lines[BACKGROUND]
        found = self.waiters.pop()
        if not interactive and not background:
            assert found is None
        elif background and found == background[0]:
            assert not interactive or self.interactive_in_a_row >= 4
            background.pop(0)
            self.interactive_in_a_row = 0
        else:
            assert found == interactive.pop(0)
            self.interactive_in_a_row += 1
            assert not background or self.interactive_in_a_row <= 4

    @precondition(lambda self: any(self.lines.values()))
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        level = data.draw(st.sampled_from([each for each in Priority if self.lines[each]]))
        name = data.draw(st.sampled_from(self.lines[level]))
        self.waiters.remove(name, level)
        self.waiters.remove(name, level)
        self.lines[level].remove(name)

    @invariant()
    def no_waiter_is_lost(self) -> None:
        assert len(self.waiters) == sum(map(len, self.lines.values())) <= self.most
        assert self.waiters.position_of(INTERACTIVE) == len(self.lines[INTERACTIVE])
        assert self.waiters.position_of(BACKGROUND) == len(self.waiters)


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=100, stateful_step_count=40)
