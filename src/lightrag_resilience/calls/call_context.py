"""One call under way, and which calls the present code runs inside of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from lightrag_resilience.breakers import Admission
from lightrag_resilience.failures.classifier import Failure
from lightrag_resilience.timeouts.attempt_timer import Timed, Timer
from lightrag_resilience.timeouts.idle_timer import IdleTimer

from .loop_state import LoopState

__all__ = ["Call", "current_call", "inside_guarded_call", "new_call"]


class Call(Timed):
    """What a guard knows of one call. Plain slots: one is made for every call.

    Attributes:
        guard: Whose call it is; None once it has ended, for tasks that were begun inside it.
        parent: The guarded call inside of which this one is made.
        loop_state: The limits and timers of the event loop it runs on.
        tokens: Tokens that were booked for it, and how many of them the question has.
        admission: The breaker's leave for the attempt under way.
        attempt: The number of the present attempt; unset in the first.
        idempotent: Whether it may be made twice; unset where only the policy knows.
        suspend_depth: How many pieces of another's work are done inside it.
        suspended_at: Monotonic seconds at which the first of these began.
        began: Monotonic seconds at which the call began.
        started: Monotonic seconds at which its present attempt was sent.
        deadline: Monotonic seconds at which it ends for good; None before it is needed.
        nested_error: What a call of another guard inside it failed with last; unset where none did.
        failure: The class of the last attempt's failure; None where it was refused.
        timer: What ends its present attempt; None where nothing does.
        idle_timer: Gives the timer of its stream, until whose end the call lasts; None while it has
            no stream. The stream keeps the timer alive.
        is_pass_through: Whether a block stands inside a call of the same guard.
    """

    __slots__ = (
        "admission",
        "attempt",
        "began",
        "deadline",
        "failure",
        "guard",
        "idempotent",
        "idle_timer",
        "is_pass_through",
        "loop_state",
        "nested_error",
        "parent",
        "started",
        "suspend_depth",
        "suspended_at",
        "timer",
        "tokens",
    )

    guard: Any
    attempt: int
    idempotent: bool
    parent: Call | None
    loop_state: LoopState
    admission: Admission
    began: float
    started: float
    deadline: float | None
    failure: Failure | None
    nested_error: Exception
    timer: Timer | None
    is_pass_through: bool
    idle_timer: Callable[[], IdleTimer | None] | None
    suspend_depth: int
    suspended_at: float
    tokens: tuple[int, int]

    @property
    def is_streaming(self) -> bool:
        """Whether it lasts until its stream ends."""
        return self.idle_timer is not None

    @contextlib.contextmanager
    def suspend_timers(self) -> Iterator[None]:
        """Let no time run: what is done in this block is another's work."""
        guard = self.guard
        if guard is None:  # it has ended, and left a task behind
            yield
            return
        self.suspend_depth += 1
        if self.suspend_depth == 1:
            self.suspended_at = guard.clock()
            if self.idle_timer is not None:
                if (gaps := self.idle_timer()) is not None:
                    gaps.pause()
            elif self.timer is not None:
                self.timer.pause(self)
        try:
            yield
        finally:
            self.suspend_depth -= 1
            if self.suspend_depth == 0 and self.guard is not None:
                self._resume_timers(guard.clock())

    def _resume_timers(self, now: float) -> None:
        """Let time run again, as if there had been no pause; the attempt's runs anew."""
        paused = now - self.suspended_at
        self.began += paused
        self.started += paused
        if self.deadline is not None:
            self.deadline += paused
        if self.idle_timer is not None:
            if (gaps := self.idle_timer()) is not None:
                gaps.resume(now)
        elif self.timer is not None:
            self.timer.resume(self, now)

    def is_within(self, guard: object) -> bool:
        """Whether this call, or one around it, belongs to `guard`."""
        call: Call | None = self
        while call is not None:
            if call.guard is guard:
                return True
            call = call.parent
        return False


def new_call(guard: Any, parent: Call | None, now: float, call: Call | None = None) -> Call:
    """A call of `guard` that begins now; a plain one where none is given to be filled in."""
    call = call or Call()
    call.name = guard.name
    call.guard = guard
    call.parent = parent
    call.deadline = call.timer = None
    call.suspend_depth = 0
    call.idle_timer = None
    call.began = now
    return call


current_call: ContextVar[Call | None] = ContextVar("lightrag_resilience_call", default=None)


def inside_guarded_call() -> bool:
    """Whether the present code runs inside a guarded call, whose guard does the retrying."""
    call = current_call.get()
    while call is not None:
        if call.guard is not None:
            return True
        call = call.parent
    return False
