"""What a call waits for before it is sent: cool-down, rate limit, bulkhead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lightrag_resilience.config.policies import LimitPolicy, Policy
from lightrag_resilience.failures.classifier import Failure, FailureKind

from .bulkhead import Bulkhead, Occupancy
from .cooldown import Cooldown
from .priority_rate_limiter import BackgroundRateLimiter
from .rate_limiter import LocalRateLimiter, RateLimiter
from .token_usage import CountTokens, answer_tokens, estimate_tokens

__all__ = ["AdmissionController", "is_limited"]

_Arguments = tuple[Sequence[Any], Mapping[str, Any]]
_OVERLOAD = frozenset({FailureKind.THROTTLED, FailureKind.UNKNOWN_OUTCOME})


def is_limited(policy: Policy) -> bool:
    """Whether a policy rejects calls or lets them wait, even without a cool-down."""
    limit, concurrency = policy.limit, policy.concurrency
    return bool(limit.rpm or limit.tpm or concurrency.max_concurrent)


class _Guard(Protocol):
    @property
    def count_tokens(self) -> CountTokens: ...


class _AdmittedCall(Protocol):
    guard: Any
    """Its `_Guard`."""
    tokens: tuple[int, int]
    """Those reserved for it, and those of them that its arguments have."""
    started: float
    """Monotonic seconds at which its current attempt was sent."""

    @property
    def reported_tokens(self) -> int | None:
        """Those that the provider says it used; None where it says nothing."""
        ...

    @property
    def sent_tokens(self) -> int:
        """Those that its arguments have."""
        ...


def _kinds(limit: LimitPolicy) -> tuple[bool, bool]:
    """Whether it limits requests, and tokens."""
    return bool(limit.rpm), bool(limit.tpm)


class AdmissionController:
    """Admits the calls of one dependency on one event loop.

    Args:
        name: The dependency.
        policy: Its rate limits and its bulkhead.
        clock: Monotonic seconds.
        shared: The rate limiter of all workers, in place of one for this loop.
    """

    __slots__ = (
        "_bulkhead",
        "_bulkhead_policy",
        "_clock",
        "_is_limited",
        "_limit",
        "_name",
        "_policy",
        "cooldown",
    )

    def __init__(
        self, name: str, policy: Policy, clock: Callable[[], float], shared: RateLimiter | None
    ) -> None:
        self.cooldown = Cooldown(name, clock)
        self._name = name
        self._clock = clock
        self._is_limited = is_limited(policy)
        self._policy = policy.limit
        self._bulkhead_policy = policy.concurrency
        self._limit: RateLimiter | None = None
        if policy.limit.rpm or policy.limit.tpm:
            self._limit = BackgroundRateLimiter(
                name, shared or LocalRateLimiter(name, policy.limit), clock
            )
        has_bulkhead = policy.concurrency.max_concurrent is not None
        self._bulkhead = Bulkhead(name, policy.concurrency, clock) if has_bulkhead else None

    def with_policy(self, policy: Policy, shared: RateLimiter | None) -> AdmissionController:
        """A controller by another policy.

        It shares the parts that the change leaves as they are: calls admitted by the old one are
        still in flight there, and count.
        """
        changed = AdmissionController(self._name, policy, self._clock, shared)
        changed.cooldown = self.cooldown
        if _kinds(policy.limit) == _kinds(self._policy) and self._limit is not None:
            # A provider may grant another limit with each answer: none may begin with a burst.
            changed._limit = self._limit
            if policy.limit != self._policy:
                changed._limit.update_policy(policy.limit)
        if policy.concurrency == self._bulkhead_policy:
            changed._bulkhead = self._bulkhead
        return changed

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to wait for."""
        return self._is_limited or self.cooldown.is_on

    def try_acquire(self, call: _AdmittedCall, arguments: _Arguments) -> bool:
        """Admit a call that need not wait; False if it has to `acquire`.

        Raises:
            CallRejected: The call may not be sent, however long it waits.
        """
        call.tokens = 0, 0
        bulkhead, limit = self._bulkhead, self._limit
        if self.cooldown.is_on or (bulkhead is not None and not bulkhead.has_permit):
            return False
        if limit is not None:
            tokens = self._tokens_for(call, *arguments)
            if not limit.try_acquire(tokens[0]):
                return False
            call.tokens = tokens
        if bulkhead is not None:
            bulkhead.take_permit()
        return True

    async def acquire(
        self, call: _AdmittedCall, arguments: _Arguments, remaining: Callable[[], float]
    ) -> bool:
        """Wait until the call may be sent; `remaining` are the seconds it has. True if it waited.

        Raises:
            CallRejected: It may not be sent, or not in time.
        """
        call.tokens = 0, 0
        try:
            waited = await self._wait_for_cooldown(call, remaining)
            if self._limit is not None:
                tokens = self._tokens_for(call, *arguments)
                longest = min(self._policy.max_wait, remaining())
                waited |= await self._limit.acquire(tokens[0], longest)
                call.tokens = tokens
            while True:
                # A 429 may have arrived during the waits. The cool-down is waited for without a
                # permit, or canaries would find the bulkhead full of waiting calls.
                waited |= await self._wait_for_cooldown(call, remaining)
                if self._bulkhead is None:
                    break
                waited |= await self._bulkhead.acquire(remaining())
                if self.cooldown.may_proceed(call):
                    break
                self._bulkhead.release()
        except BaseException:
            self.cooldown.on_cancelled(call)
            self._settle(call, 0)
            raise
        return waited

    async def _wait_for_cooldown(self, call: _AdmittedCall, remaining: Callable[[], float]) -> bool:
        if self.cooldown.may_proceed(call):
            return False
        longest = min(self._policy.max_wait, remaining())
        return await self.cooldown.wait(call, longest, call.guard.sleep)

    def abandon(self, call: _AdmittedCall) -> None:
        """An admitted call is not sent after all."""
        self._settle(call, 0)
        self.release_cancelled(call)

    def release_cancelled(self, call: _AdmittedCall) -> None:
        """A call was cancelled by its caller."""
        if self._bulkhead is not None:
            self._bulkhead.release()
        self.cooldown.on_cancelled(call)

    @property
    def occupancy(self) -> Occupancy:
        """The use of the bulkhead now."""
        return Occupancy() if self._bulkhead is None else self._bulkhead.occupancy

    def first_item_received(self, call: _AdmittedCall) -> None:
        """A call's stream has its first item: whatever follows, it was not throttled."""
        if self.cooldown.is_on:
            self.cooldown.on_result(call, None)

    def release(
        self,
        call: _AdmittedCall,
        failure: Failure | None,
        duration: float,
        answer: object = None,
        *,
        is_cut_short: bool = False,
    ) -> int:
        """A call succeeded, failed, or was cut short by its deadline, after `duration` seconds.

        Returns the tokens it used; 0 where they are not counted.
        """
        if self._bulkhead is not None:
            self._bulkhead.release()
            if failure is None or (failure.kind in _OVERLOAD and not is_cut_short):
                is_overloaded = failure is not None
                self._bulkhead.record_outcome(call.started, duration, is_overloaded=is_overloaded)
        if self.cooldown.is_on:
            self.cooldown.on_result(call, failure)
        if self._limit is None or not call.tokens[0]:
            return 0
        used = _used(call, failure, answer)
        self._settle(call, used)
        return used

    def _settle(self, call: _AdmittedCall, used: int) -> None:
        if self._limit is not None and call.tokens[0]:
            self._limit.settle(call.tokens[0], used)

    def _tokens_for(
        self, call: _AdmittedCall, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[int, int]:
        if not self._policy.tpm:
            return 0, 0
        guard: _Guard = call.guard
        sent, bound = estimate_tokens(args, kwargs, guard.count_tokens)
        return sent + (self._policy.answer_tokens if bound is None else bound), sent


def _used(call: _AdmittedCall, failure: Failure | None, answer: object) -> int:
    """The tokens a call has used: as reported, or by its length, or as many as were reserved."""
    reserved, _ = call.tokens
    if failure is None:
        return answer_tokens(call, answer, reserved)
    if (reported := call.reported_tokens) is not None:
        return reported
    return reserved if failure.kind is FailureKind.UNKNOWN_OUTCOME else 0
