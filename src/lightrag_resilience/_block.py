"""A guard around a block: all but retry, since a block cannot be run again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ._call import current_call, new_call, owned_by_a_guard
from ._lateness import timeout_error
from ._tell import tell_failure

if TYPE_CHECKING:
    from .guard import Guard

__all__ = ["begin_block", "end_block"]


async def begin_block(guard: Guard) -> None:
    """Let a block begin.

    Raises:
        CallRejected: It may not.
    """
    parent = current_call.get()
    if guard.gate.is_closed and not owned_by_a_guard():
        guard.gate.check(guard.name, guard.events)
    call = new_call(guard, parent, guard.clock())
    call.is_pass_through = parent is not None and parent.is_within(guard)
    current_call.set(call)
    if call.is_pass_through:
        return
    guard.gate.running[call] = None
    try:
        await guard.enter(call, guard.prepare(call), (), {})
    except BaseException:
        _leave(guard)
        raise


def end_block(guard: Guard, error: BaseException | None) -> None:
    """A block has ended.

    Raises:
        AttemptTimeoutError: Its time was up.
    """
    call = current_call.get()
    if call is None or call.guard is not guard:
        raise RuntimeError(f"The block of guard({guard.name!r}) ended in another context")
    _leave(guard)
    if call.is_pass_through:
        return
    timed_out = call.timer is not None and call.timer.stop(call)
    if timed_out and isinstance(error, asyncio.CancelledError):
        timeout = timeout_error(guard, call)
        guard.settle_error(call, timeout)
        tell_failure(guard, call, timeout)
        raise timeout from error
    if error is None:
        guard.settle_success(call)
    else:
        guard.settle_error(call, error)
        tell_failure(guard, call, error)


def _leave(guard: Guard) -> None:
    call = current_call.get()
    assert call is not None  # noqa: S101 - both callers have seen it
    current_call.set(call.parent)
    call.guard = None
    guard.gate.running.pop(call, None)
