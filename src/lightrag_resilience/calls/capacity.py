"""What a call may have to wait for before an attempt: the breaker's leave, and its turn in line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightrag_resilience.breakers import Admission
from lightrag_resilience.errors import CallRejected
from lightrag_resilience.limits.admission import Line

from .call_context import Call
from .publishing import tell_probe, tell_refusal, tell_wait

if TYPE_CHECKING:
    from lightrag_resilience.pipeline.guard import Guard

__all__ = ["ask_breaker", "wait_in_line"]


async def ask_breaker(guard: Guard) -> Admission:
    """The breaker's leave for an attempt.

    Raises:
        CallRejected: It gives none.
    """
    breaker = guard.breaker
    try:
        admission = await breaker.ask()
    except CallRejected as refusal:
        tell_refusal(guard, type(refusal))
        raise
    if admission is not breaker.circuit.standing:
        tell_probe(guard)
    return admission


async def wait_in_line(
    guard: Guard, call: Call, line: Line, question: tuple[tuple[Any, ...], dict[str, Any]]
) -> None:
    """Wait until the call may be sent, then ask the breaker again.

    Raises:
        CallRejected: It may not, or not in time.
    """
    if line.pass_through(call, question):
        tell_wait(guard, call, 0.0)
        return
    began = guard.clock()
    try:
        async with guard.gate.interruptible(guard.name):
            waited = await line.enter(call, question, lambda: guard.remaining(call))
    except BaseException as refusal:
        guard.breaker.released(call.admission)
        if isinstance(refusal, CallRejected):
            tell_refusal(guard, type(refusal))
        raise
    tell_wait(guard, call, guard.clock() - began)
    if waited and not guard.breaker.circuit.honours(call.admission):
        try:
            call.admission = await ask_breaker(guard)
        except BaseException:
            line.give_up(call)
            raise
