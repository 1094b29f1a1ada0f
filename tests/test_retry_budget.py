"""The retry budget: tokens go out with retries and come back with successes."""

from __future__ import annotations

import pytest

from lightrag_resilience.retry import RETRY_COST, TIMEOUT_RETRY_COST, RetryBudget


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
def test_no_budget_allows_every_retry(cost: int) -> None:
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


@pytest.mark.parametrize("capacity", [0, 3, 10, 100, 500])
@pytest.mark.parametrize("workers", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize("cost", [RETRY_COST, TIMEOUT_RETRY_COST])
def test_the_shown_budget_is_the_one_that_decides(capacity: int, workers: int, cost: int) -> None:
    budget = RetryBudget(capacity, lambda: workers)
    assert budget.share == (capacity == 0 or capacity >= RETRY_COST)
    for _ in range(1 + capacity // cost):
        before = budget.share
        is_paid = budget.spend(cost)
        assert is_paid or budget.share == 0.0
        assert not is_paid or budget.share < before or capacity == 0
    assert budget.share == (capacity == 0)
    budget.earn(2 * cost)
    assert budget.share > 0.0 or capacity < cost


def test_each_of_many_workers_may_retry_once() -> None:
    budget = RetryBudget(500, lambda: 1000)
    assert [budget.spend(TIMEOUT_RETRY_COST) for _ in range(2)] == [True, False]


def test_a_remainder_that_pays_no_retry_is_shown_as_nothing() -> None:
    budget = RetryBudget(48, lambda: 3)
    assert budget.spend(TIMEOUT_RETRY_COST)
    assert not budget.spend(TIMEOUT_RETRY_COST)
    assert budget.share == 0.0  # 6 are left
    assert budget.spend(RETRY_COST)
    assert budget.tokens == 33
