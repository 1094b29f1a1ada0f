"""What follows a first failure: tenacity decides whether, when and how often to call again.

When most calls fail, a budget ends retries instead of letting them double the traffic: the retry
quota of AWS SDKs' standard mode; see `RetryPolicy`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from .config.policies import RetryPolicy
from .errors import CallRejected, ShuttingDownError
from .failures.classifier import Failure, FailureKind

__all__ = [
    "RETRY_COST",
    "TIMEOUT_RETRY_COST",
    "RetryBudget",
    "RetryLoop",
    "is_retryable",
    "single_worker",
]

_FATAL, _UNKNOWN_OUTCOME = FailureKind.FATAL, FailureKind.UNKNOWN_OUTCOME  # each a slow lookup
_TRANSIENT = FailureKind.TRANSIENT
# A gateway did not wait for the answer, or lost it: what is behind it may have done the work.
_MAY_BE_DONE = frozenset({460, 499, 502, 504, 520, 524, 598, 599})
RETRY_COST = 5
TIMEOUT_RETRY_COST = 10
R = TypeVar("R")


def single_worker() -> int:
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

    def __init__(self, capacity: int, workers: Callable[[], int] = single_worker) -> None:
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


def is_retryable(failure: Failure, policy: RetryPolicy) -> bool:
    """Whether calling again can help, and can do no harm."""
    if failure.kind is _UNKNOWN_OUTCOME or (
        failure.kind is _TRANSIENT and failure.status in _MAY_BE_DONE
    ):
        return policy.idempotent is not False
    return failure.kind is not _FATAL


@dataclass(slots=True, kw_only=True)
class RetryLoop:
    """The retries of one call.

    Attributes:
        dependency: Whose call it is.
        policy: How often, and how long to wait.
        budget: Shared by all calls of the dependency.
        deadline: Tells the monotonic seconds at which the call as a whole ends, or None.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
        scheduled: Told the number of the next attempt and the wait before it.
        last_failure: The class of the last attempt's failure; None where it was refused.
    """

    dependency: str
    policy: RetryPolicy
    budget: RetryBudget
    deadline: Callable[[], float | None]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    scheduled: Callable[[int, float], None]
    last_failure: Callable[[], Failure | None]
    _spent: int = 0
    _is_waiting: bool = False
    _wait: float = 0.0
    _why: str = ""

    async def run_after(self, first: Exception, attempt: Callable[[], Awaitable[R]]) -> R:
        """Go on after a first failure until an attempt succeeds or there is no point.

        Raises:
            Exception: What the last attempt raised, with a note that says why it was the last.
        """
        last: Exception = first
        replayed = False

        async def next_attempt() -> R:
            nonlocal last, replayed
            if not replayed:
                replayed = True
                raise first
            self._is_waiting = False
            try:
                return await attempt()
            except CallRejected as refusal:
                raise refusal from last
            except Exception as error:
                last = error
                raise

        # One controller a call: a shared one keeps the state of calls, and mixes them up.
        controller = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(self._should_retry),
            wait=self._backoff,
            stop=self._must_stop,
            before_sleep=self._announce,
            sleep=self.sleep,
            reraise=True,
        )
        try:
            result: R = await controller(next_attempt)
        except ShuttingDownError as refusal:
            raise refusal from last
        except Exception as error:
            if self._why:
                error.add_note(f"lightrag_resilience: {self.dependency!r} {self._why}")
            raise
        finally:
            if self._is_waiting:  # for an attempt that is not made
                self.budget.earn(self._spent)
        self.budget.earn(self._spent)
        return result

    def _should_retry(self, error: BaseException) -> bool:
        failure = self.last_failure()
        return (
            isinstance(error, Exception)
            and failure is not None
            and is_retryable(failure, self.policy)
        )

    def _must_stop(self, state: tenacity.RetryCallState) -> bool:
        self._why = self._stop_reason(state)
        return bool(self._why)

    def _stop_reason(self, state: tenacity.RetryCallState) -> str:
        wait, policy = state.upcoming_sleep, self.policy
        failure = self._failure()
        if state.attempt_number >= policy.attempts:
            return f"gave up after {state.attempt_number} attempts"
        if failure.retry_after is not None and failure.retry_after > policy.max_retry_after:
            return f"asks to wait {failure.retry_after:g} s, more than {policy.max_retry_after:g} s"
        deadline = self.deadline()
        if deadline is not None and self.clock() + wait >= deadline:
            return f"would be called again only in {wait:.1f} s, after the call's deadline"
        cost = TIMEOUT_RETRY_COST if failure.kind is FailureKind.UNKNOWN_OUTCOME else RETRY_COST
        if not self.budget.spend(cost):
            return "is not called again: the retry budget is used up"
        self._spent = cost
        return ""

    def _announce(self, state: tenacity.RetryCallState) -> None:
        self._is_waiting = True
        self.scheduled(state.attempt_number + 1, state.upcoming_sleep)

    def _failure(self) -> Failure:
        failure = self.last_failure()
        assert failure is not None  # noqa: S101 - tenacity asks only after _worth_it said yes
        return failure

    def _backoff(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt: what the provider asks for, or our own choice."""
        hint = self._failure().retry_after
        if hint:
            # A little later than told, and not all callers at once.
            return hint + random.uniform(0.0, min(0.25 * hint, 0.5))  # noqa: S311
        # tenacity forgets its last wait with each attempt.
        self._wait = self._own_backoff(state.attempt_number, self._wait)
        return self._wait

    def _own_backoff(self, attempts: int, before: float) -> float:
        """Seconds after so many attempts, where `before` was the last wait of our own choice."""
        policy = self.policy
        grown = policy.initial_backoff * policy.backoff_growth ** (attempts - 1)
        longest = min(grown, policy.max_backoff)
        if policy.jitter == "none":
            return longest
        if policy.jitter == "growing":
            # Half the growth at least, so that jitter never makes the second wait the shorter one.
            growth = policy.backoff_growth
            shortest = min(before, longest / growth) * (1 + growth) / 2
            return random.uniform(shortest, longest)  # noqa: S311
        if policy.jitter == "full":
            return random.uniform(0.0, longest)  # noqa: S311
        before = max(before, policy.initial_backoff)
        return min(random.uniform(policy.initial_backoff, before * 3), policy.max_backoff)  # noqa: S311
