"""Hedging: if the answer of a read is late, a second call is sent, and the first answer counts.

After Dean and Barroso, "The Tail at Scale" (2013). A second call costs the dependency work: it is
paid from the retry budget, and sent only while the circuit is closed, so never in an outage.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, ParamSpec, TypeVar

from annotated_types import Gt, Le

from lightrag_resilience.calls.token_account import Race, current_race
from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.validation import problem_with
from lightrag_resilience.errors import PolicyError, UnsupportedCallError
from lightrag_resilience.events import HedgeSent
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards, resolve_guards
from lightrag_resilience.retry import RETRY_COST
from lightrag_resilience.runtime.callables import Kind, kind_of, must_be_function, name_of
from lightrag_resilience.runtime.tasks import keep_until_done

__all__ = ["hedged"]

P = ParamSpec("P")
R = TypeVar("R")

_After = Annotated[float, Gt(0), Le(86_400)]


def hedged(
    after: float, *, registry: Guards | None = None
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
    """Send a second call if an answer takes longer than `after` seconds; for reads only.

    ::

        @hedged(after=0.2)
        @resilient("storage.orders")
        async def load(order_id: str) -> dict: ...

    The slower call is cancelled, which is no failure. If one call fails, the other is awaited.

    Args:
        after: Seconds; best what 95 % of the calls take.
        registry: The guards that `resilient` uses; those of the process by default.

    Raises:
        PolicyError: `after` is out of bounds.
        UnsupportedCallError: The decorated object is no `resilient` coroutine function.
    """
    if callable(after):
        raise UnsupportedCallError(
            f"@hedged needs a time: write @hedged(after=0.2) above {name_of(after)}"
        )
    if problem := problem_with(after, _After):
        raise PolicyError(f"hedged: after {problem}")
    owner = resolve_guards(registry)

    def decorate(
        function: Callable[P, Coroutine[Any, Any, R]],
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        must_be_function(function, "hedged() needs a function")
        name = getattr(function, "__resilience_name__", None)
        if name is None or kind_of(function) is not Kind.COROUTINE:
            raise UnsupportedCallError(
                f"hedged() needs a coroutine function that is resilient: write @resilient('...') "
                f"between it and {name_of(function)}"
            )

        @functools.wraps(function)
        async def call_hedged(*args: P.args, **kwargs: P.kwargs) -> R:
            race = Race()
            token = current_race.set(race)
            tasks: list[asyncio.Task[R]] = [asyncio.create_task(function(*args, **kwargs))]
            try:
                # Not `wait_for`: this timeout must not cancel the first call.
                done, _ = await asyncio.wait(tasks, timeout=after)
                if not done and _may_hedge(owner.get(name)):
                    tasks.append(asyncio.create_task(function(*args, **kwargs)))
                answer = await _first_answer(tasks)
            except BaseException:
                # Neither call may outlive an error or a cancellation that its caller sees.
                await asyncio.gather(*map(_cancel, tasks), return_exceptions=True)
                raise
            finally:
                current_race.reset(token)
            race.is_decided = True
            for task in tasks:
                _cancel(task)  # not awaited: its connection may have stalled
            return answer

        return call_hedged

    return decorate


def _may_hedge(guard: Guard) -> bool:
    # The circuit first: a hedge that an open circuit forbids must not cost the budget.
    if guard.breaker.state is not State.CLOSED or not guard.budget.spend(RETRY_COST):
        return False
    guard.events.publish(HedgeSent(guard.name))
    return True


async def _first_answer(tasks: list[asyncio.Task[R]]) -> R:
    """The first result; if both fail, the error of the first call."""
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and not task.cancelled() and task.exception() is None:
                return task.result()
    # The hedge may have failed for a reason of its own, such as a full queue.
    return tasks[0].result()


def _cancel(task: asyncio.Task[R]) -> asyncio.Task[R]:
    keep_until_done(task)
    task.cancel()
    return task
