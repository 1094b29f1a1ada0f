"""Calls of providers on both sides of LightRAG's queues.

The workers of a queue have contexts of their own in LightRAG 1.4, so a call takes its context
through the queue as an argument.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightrag_resilience.calls.call_context import Deadline, current_deadline
from lightrag_resilience.calls.deadline import under_deadline
from lightrag_resilience.calls.token_account import TokenAccount, current_account
from lightrag_resilience.config.policies import TimeoutPolicy
from lightrag_resilience.draining.gate import is_allowed_during_drain
from lightrag_resilience.errors import AttemptTimeoutError, DeadlineExceededError
from lightrag_resilience.failures.classifier import root_cause
from lightrag_resilience.failures.too_large import is_too_large
from lightrag_resilience.integrations.lightrag.work.context import Stage, reached
from lightrag_resilience.integrations.lightrag.work.ingest import IngestRun, current_run
from lightrag_resilience.limits.priority import Priority, current_priority, priority
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.recovery_probe import Probe

from .contracts import NewContract

__all__ = ["GuardedCalls", "into_queue"]

_CARRIED = "_resilience_carried"
"""The argument that carries a call's context through a queue."""


class _Carried(NamedTuple):
    level: Priority = Priority.INTERACTIVE
    is_allowed: bool = False
    run: IngestRun | None = None
    deadline: Deadline | None = None
    account: TokenAccount | None = None

    @contextlib.contextmanager
    def as_current(self) -> Iterator[None]:
        """A block with this context."""
        allowed = is_allowed_during_drain.set(self.is_allowed)
        run, account = current_run.set(self.run), current_account.set(self.account)
        try:
            with priority(self.level), under_deadline(self.deadline):
                yield
        finally:
            is_allowed_during_drain.reset(allowed)
            current_run.reset(run)
            current_account.reset(account)


_CARRIED_BY_NONE = _Carried()


async def into_queue(
    queued: Callable[..., Any], guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call a queue whose function is one of `GuardedCalls`, with the context of the caller.

    Raises:
        DeadlineExceededError: The caller's deadline has passed, in the queue or in the call.
    """
    deadline, is_allowed = current_deadline(), is_allowed_during_drain.get()
    level, run, account = current_priority.get(), current_run.get(), current_account.get()
    carried = _Carried(level, is_allowed, run, deadline, account)
    if carried != _CARRIED_BY_NONE:
        kwargs[_CARRIED] = carried
    if deadline is None:
        return await queued(*args, **kwargs)
    # The place in the queue is waited for as well, not only the call of its worker.
    late = functools.partial(deadline.error, guard.name)
    async with _at_most(max(deadline.left, 0.0), late):
        return await queued(*args, **kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedCalls:
    """How the workers of a queue call a provider.

    Attributes:
        attempt: Calls the provider.
        guard: Its guard.
        times: Returns how long a call may take now.
        contract: Makes the contract of a call.
        probe: Another request, which shows whether the provider answers any.
        before: Awaited first, outside the guard; None for nothing.
    """

    attempt: Callable[..., Coroutine[Any, Any, Any]]
    guard: Guard
    times: Callable[[], TimeoutPolicy]
    contract: NewContract
    probe: Probe
    before: Callable[[], Awaitable[None]] | None = None

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What makes these calls, with the name and the signature of a function."""

        # A plain function: LightRAG deep-copies it with its configuration, and reads its signature.
        @functools.wraps(function)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            with kwargs.pop(_CARRIED, _CARRIED_BY_NONE).as_current():
                try:
                    if self.before is not None:
                        await self.before()
                    return await self._call(args, kwargs)
                except Exception as error:
                    reached(error, Stage.QUEUED)
                    raise

        return guarded

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kept = self.contract(self.guard.name, args, kwargs)

        async def checked(*args: Any, **kwargs: Any) -> Any:
            return await kept.call(self.attempt, args, kwargs)

        vars(checked).update(vars(self.attempt))  # the name of the model, for traces
        try:
            return await self._within_times(checked, args, kwargs)
        except Exception as error:
            if (accepted := kept.accepted_after(error)) is not None:
                return accepted
            if kept.accepts_after(error) and await self._is_answered():
                return await self._within_times(checked, args, kwargs, once=True)
            halves = kept.halves() if is_too_large(root_cause(error)) else None
            if halves is None:
                raise
        # One after the other: where not even one text passes, this ends at the first.
        first, second = halves
        return kept.joined(await self._call(*first), await self._call(*second))

    async def _is_answered(self) -> bool:
        """Whether the provider answers another request now."""

        async def ask() -> object:
            return await self.probe()

        try:
            await self.guard.run(ask, (), {}, once=True)
        except Exception:  # noqa: BLE001 - whatever it is, it is no answer
            return False
        return True

    async def _within_times(
        self,
        function: Callable[..., Coroutine[Any, Any, Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        once: bool = False,
    ) -> Any:
        """As `guard.run`, within the times of these calls where they are shorter than the guard's.

        Another role of LightRAG may call the same endpoint, and have more time.
        """
        times, name = self.times(), self.guard.name
        if times == self.guard.policy.timeout:
            return await self.guard.run(function, args, kwargs, once=once)
        each, total = times.attempt, times.total

        async def attempt(*args: Any, **kwargs: Any) -> Any:
            async with _at_most(each, lambda: AttemptTimeoutError(name, None, f"after {each:g} s")):
                return await function(*args, **kwargs)

        vars(attempt).update(vars(function))  # the name of the model, for traces
        async with _at_most(total, lambda: DeadlineExceededError(name, None, f"after {total:g} s")):
            return await self.guard.run(attempt, args, kwargs, once=once)


@contextlib.asynccontextmanager
async def _at_most(seconds: float | None, error: Callable[[], Exception]) -> AsyncIterator[None]:
    """A block that has so many seconds; None: no limit.

    Args:
        seconds: From now on.
        error: Makes what is raised after them. A `TimeoutError` of the block itself passes.
    """
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            yield
    except TimeoutError as cause:
        if timer.expired():
            raise error() from cause
        raise
