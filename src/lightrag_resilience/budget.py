"""A retry budget: when most calls fail, retries stop instead of doubling the traffic.

The scheme is the retry quota of AWS SDKs' standard mode; see `RetryPolicy`.
"""

from __future__ import annotations

__all__ = ["RETRY_COST", "TIMEOUT_RETRY_COST", "RetryBudget"]

RETRY_COST = 5
TIMEOUT_RETRY_COST = 10


class RetryBudget:
    """Tokens that retries spend and successes earn back.

    Args:
        capacity: Tokens at the start and at the most; 0 lets every retry pass.
    """

    __slots__ = ("capacity", "tokens")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = capacity

    def spend(self, cost: int) -> bool:
        """Pay for a retry. False where the tokens do not suffice; nothing is spent then."""
        if not self.capacity:
            return True
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True

    def earn(self, amount: int = 1) -> None:
        """A call succeeded: 1 token back, or what its last retry cost."""
        self.tokens = min(self.tokens + amount, self.capacity)
