"""The retry budget: tokens go out with retries and come back with successes."""

from __future__ import annotations

import pytest

from lightrag_resilience.budget import RetryBudget


def test_retries_spend_until_nothing_is_left() -> None:
    budget = RetryBudget(12)
    assert [budget.spend(5), budget.spend(5), budget.spend(5)] == [True, True, False]
    assert budget.tokens == 2


def test_successes_earn_back_and_never_more_than_there_was() -> None:
    budget = RetryBudget(10)
    assert budget.spend(10)
    budget.earn()
    assert budget.tokens == 1
    budget.earn(5)
    assert budget.tokens == 6
    for _ in range(100):
        budget.earn()
    assert budget.tokens == 10


@pytest.mark.parametrize("cost", [1, 1000])
def test_no_budget_lets_every_retry_pass(cost: int) -> None:
    assert RetryBudget(0).spend(cost)


def test_each_of_several_workers_spends_its_part_and_a_new_one_takes_from_it() -> None:
    workers = 4
    budget = RetryBudget(100, lambda: workers)
    assert [budget.spend(5) for _ in range(6)] == [True] * 5 + [False]
    workers = 2
    assert [budget.spend(5) for _ in range(6)] == [True] * 5 + [False]
    budget.earn(5)
    assert budget.spend(5)
    workers = 4
    budget.earn(20)
    assert not budget.spend(5)
