"""A guard around a block: all but retry, since a block cannot be run again.

A block usually ends in the context in which it began. One in an async generator need not: another
task may request each item, and between two items the reader runs with the context variables that
the block has set. Such a block is found by the frame of its generator. While the generator is
suspended at a ``yield``, the block surrounds no other call.
"""

from __future__ import annotations

import asyncio
import dis
import functools
import inspect
import sys
from types import CodeType, FrameType
from typing import Any

from lightrag_resilience.calls.attempts import Attempts
from lightrag_resilience.calls.call_context import (
    Call,
    current_call,
    deadline_of,
    inside_guarded_call,
)
from lightrag_resilience.calls.publishing import publish_call_failed

__all__ = ["Block", "BlockBetweenItems", "begin_block", "end_block", "open_block"]

_GENERATOR = inspect.CO_ASYNC_GENERATOR
_AFTER_YIELD = 1  # the lower two bits of RESUME's argument, documented in `dis`
_MANAGERS = frozenset({"__aenter__", "__aexit__", "enter_async_context", "aclose"})
"""Functions that begin or end a block for their caller."""


class Block(Call):
    """A call that is a block.

    Attributes:
        before: The current call when it began.
        generator: The frame of the async generator whose code has the block; None elsewhere.
    """

    __slots__ = ("before", "caller_deadline", "generator")

    before: Call | None
    generator: FrameType | None

    @property
    def owner(self) -> Any:
        """The guard of the block; None once it has ended."""
        return self.guard


class BlockBetweenItems(Block):
    """A block of an async generator: the code of the reader, between two items, is not inside it.

    While the reader has an item, `guard` is None as if the block had ended.
    """

    __slots__ = ("_owner", "_read", "_yields")

    def __init__(self, read: FrameType) -> None:
        self._read = read
        self._yields = _yields_of(read.f_code)
        self._owner: Any = None

    @property
    def owner(self) -> Any:
        """The guard of the block; None once it has ended."""
        return self._owner

    @property
    def is_suspended(self) -> bool:
        """Whether the reader has an item and has not requested the next."""
        return self._read.f_lasti in self._yields

    @property
    def guard(self) -> Any:
        """The guard for code inside the block; None for the reader's code."""
        return None if self.is_suspended else self._owner

    @guard.setter
    def guard(self, owner: Any) -> None:
        self._owner = owner


async def begin_block(guard: Attempts) -> Block:
    """Begin a block in the frame that called ``__aenter__``.

    Raises:
        CallRejected: It may not begin.
    """
    gate = guard.gate
    if gate.is_closed and not inside_guarded_call():
        gate.check(guard.name, guard.events)
    around = sys._getframe(2)  # noqa: SLF001 - documented
    code = around.f_code
    if code.co_flags & _GENERATOR or code.co_name in _MANAGERS:
        call = _new_block(guard, *_generators_around(around))
        if call.generator is not None:
            gate.in_generators.setdefault(call.generator, []).append(call)
    else:
        call = _new_block(guard, None, None)
    call.is_pass_through = call.parent is not None and call.parent.is_within(guard)
    current_call.set(call)
    if call.is_pass_through:
        return call
    gate.running[call] = None
    try:
        await guard.admit(call, guard.prepare(call), (), {})
    except BaseException:
        _leave(call, guard)
        raise
    return call


def open_block(guard: Attempts, depth: int = 1) -> Block | None:
    """The innermost block of a guard that ends here; None where none has begun.

    Args:
        guard: The guard of the block.
        depth: How many frames above this one the block ends.
    """
    if in_generators := guard.gate.in_generators:
        generator, _ = _generators_around(sys._getframe(depth + 1))  # noqa: SLF001 - documented
        call: Block
        for call in reversed(in_generators.get(generator, ())):  # type: ignore[arg-type]
            if call.owner is guard:
                return call
    current = current_call.get()
    if isinstance(current, Block) and current.generator is None and current.guard is guard:
        return current
    # Another task began it (an exit stack can hold it), or blocks end out of order. Blocks of one
    # guard are interchangeable then; one whose task has ended is the best guess.
    others = [
        call
        for call in guard.gate.running
        if isinstance(call, Block) and call.owner is guard and call.generator is None
    ]
    return max(others, key=_has_lost_its_task, default=None)


def end_block(guard: Attempts, error: BaseException | None) -> None:
    """End a block and settle its attempt.

    Raises:
        AttemptTimeoutError: Its timer fired.
        DeadlineExceededError: The same, at its deadline.
    """
    call: Any = current_call.get()
    if call.__class__ is not Block or call.guard is not guard or guard.gate.in_generators:
        # The slow way, for all but a block that ends where it began, with no generators around.
        call = open_block(guard, 2)
    if call is None:
        raise RuntimeError(f"The block of guard({guard.name!r}) ended in another context")
    _leave(call, guard)
    if call.is_pass_through:
        return
    timed_out = call.timer is not None and call.timer.stop(call)
    if (
        timed_out
        and isinstance(error, asyncio.CancelledError)
        and call.task is asyncio.current_task()
    ):
        timeout = guard.timeout_error(call, error)
        guard.settle_error(call, timeout)
        publish_call_failed(guard, call, timeout)
        raise timeout
    if error is None:
        guard.settle_success(call)
    else:
        guard.settle_error(call, error)
        publish_call_failed(guard, call, error)


def _new_block(guard: Attempts, generator: FrameType | None, read: FrameType | None) -> Block:
    before = current_call.get()
    if before is not None:
        before = _still_open(before)
    parent = before
    while parent is not None and parent.guard is None:  # ended, or suspended at a yield
        parent = parent.parent
    call = Block() if read is None else BlockBetweenItems(read)
    call.begin(guard, parent, guard.clock())
    call.caller_deadline = deadline_of(before)
    call.before = before
    call.generator = generator
    return call


def _leave(call: Block, guard: Attempts) -> None:
    gate = guard.gate
    if (generator := call.generator) is not None:
        blocks = gate.in_generators[generator]
        blocks.remove(call)
        if not blocks:
            del gate.in_generators[generator]
    if current_call.get() is call:
        before = call.before
        current_call.set(before if before is None else _still_open(before))
    gate.running.pop(call, None)
    call.guard = None


def _has_lost_its_task(call: Block) -> bool:
    task = call.running_task
    return task is not None and task.done()


def _still_open(call: Call | None) -> Call | None:
    """A call, or the one before it where it is a block that has ended."""
    while isinstance(call, Block) and call.owner is None:
        call = call.before
    return call


# ---------------------------------------------------------------------- generators


def _generators_around(frame: FrameType | None) -> tuple[FrameType | None, FrameType | None]:
    """Frames of the async generator that has a block, and of the one whose reader is outside it.

    The two differ where a generator is a context manager: the body of its ``async with`` is inside
    the block. The second frame is then that of the generator with the ``async with``, if any.
    """
    frame = ends = _outside_of_managers(frame)
    while frame is not None and _is_generator(frame) and (around := frame.f_back) is not None:
        if around.f_code.co_name != "__aenter__":
            return ends, frame
        frame = _outside_of_managers(around)
    return (ends if _is_generator(ends) else None), None


def _outside_of_managers(frame: FrameType | None) -> FrameType | None:
    while frame is not None and _is_of_manager(frame):
        frame = frame.f_back
    return frame


def _is_of_manager(frame: FrameType) -> bool:
    return frame.f_code.co_name in _MANAGERS


def _is_generator(frame: FrameType | None) -> bool:
    return frame is not None and bool(frame.f_code.co_flags & _GENERATOR)


@functools.lru_cache(maxsize=512)
def _yields_of(code: CodeType) -> frozenset[int]:
    """The offsets at which a generator is suspended at a ``yield``, and not in an ``await``."""
    found: set[int] = set()
    before: dis.Instruction | None = None
    for step in dis.get_instructions(code):
        is_resumed = step.opname == "RESUME" and (step.arg or 0) & 3 == _AFTER_YIELD
        if is_resumed and before is not None and before.opname == "YIELD_VALUE":
            found |= {before.offset, step.offset}
        before = step
    return frozenset(found)
