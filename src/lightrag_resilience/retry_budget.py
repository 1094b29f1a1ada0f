"""A retry budget: when most calls fail, retries stop instead of doubling the traffic.

The scheme is the retry quota of AWS SDKs' standard mode; see `RetryPolicy`.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["RETRY_COST", "TIMEOUT_RETRY_COST", "RetryBudget", "alone"]

RETRY_COST = 5
TIMEOUT_RETRY_COST = 10


def alone() -> int:
    """How many processes there are where none is known but this."""
    return 1


class RetryBudget:
    """Tokens that retries spend and successes earn back.

    Args:
        capacity: Tokens at the start and at the most; 0 lets every retry pass.
        workers: How many processes share them, this one included: each may spend its part, or what
            one retry costs where that is more.
    """

    __slots__ = ("_cost", "_workers", "capacity", "tokens")

    def __init__(self, capacity: int, workers: Callable[[], int] = alone) -> None:
        self.capacity = capacity
        self.tokens = capacity
        self._workers = workers
        self._cost = RETRY_COST

    def resize(self, capacity: int) -> None:
        """Have so many from now on; what was spent stays spent."""
        spent = self.capacity - self.tokens
        self.capacity = capacity
        self.tokens = max(capacity - spent, 0)

    @property
    def _part(self) -> float:
        """What this process may spend of the capacity."""
        part = max(self.capacity / self._workers(), TIMEOUT_RETRY_COST)
        return min(part, self.capacity)

    @property
    def share(self) -> float:
        """What this process may still spend of its part, 0 to 1; 1 where every retry passes.

        0 where a retry such as the last one that was asked for would not be paid.
        """
        if not self.capacity:
            return 1.0
        part = self._part
        left = part - (self.capacity - self.tokens)
        return left / part if left >= self._cost else 0.0

    def spend(self, cost: int) -> bool:
        """Pay for a retry. False where the tokens do not suffice; nothing is spent then."""
        if not self.capacity:
            return True
        self._cost = cost
        if self._part - (self.capacity - self.tokens) < cost:
            return False
        self.tokens -= cost
        return True

    def earn(self, amount: int = 1) -> None:
        """A call succeeded: 1 token back, or what its last retry cost."""
        self.tokens = min(self.tokens + amount, self.capacity)
