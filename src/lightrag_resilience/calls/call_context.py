"""One call under way, and the calls that the present code runs inside of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal
from weakref import ref

from lightrag_resilience.breakers import Admission
from lightrag_resilience.errors import DeadlineExceededError
from lightrag_resilience.failures.classifier import Failure
from lightrag_resilience.timeouts.attempt_timer import Timed, Timer
from lightrag_resilience.timeouts.idle_timer import IdleTimer

from .loop_state import LoopState
from .token_account import TokenAccount

__all__ = [
    "Call",
    "CallUnderDeadline",
    "Deadline",
    "Stage",
    "current_call",
    "current_deadline",
    "deadline_of",
    "guarded_call",
    "inside_guarded_call",
]

Stage = Literal["not_sent", "queued", "in_flight"]
"""How far a call is, in the words of the drain's journal: before the breaker has admitted it,
waiting for capacity, or sent at least once."""


class Call(Timed):
    """What a guard knows of one call. Plain slots: one is made for every call.

    Slots that few calls need stay unset, as each store costs every call. Only the properties of
    this class read such a slot.

    Attributes:
        guard: The guard that makes it; None once it has ended, for tasks that were begun inside it.
        parent: The guarded call inside of which this one is made.
        loop_state: The limits and timers of the event loop it runs on.
        tokens: Tokens that were booked for it, and how many of them its arguments have.
        admission: The breaker's admission of the attempt under way.
        idempotent: Whether it may be made twice; None where only the policy knows.
        suspend_depth: Depth of nested calls to other dependencies; timers are suspended above 0.
        suspended_at: Monotonic seconds at which the first of these began.
        began: Monotonic seconds at which the call began.
        started: Monotonic seconds at which its present attempt was sent.
        failure: The class of the last attempt's failure; None where it was rejected.
        timer: What ends its present attempt; None where nothing does.
        idle_timer: Gives the timer of its stream, until whose end the call lasts; None while it has
            no stream. The stream keeps the timer alive.
        is_pass_through: Whether a block is inside a call of the same guard.
    """

    __slots__ = (
        "_account",
        "_attempt_number",
        "_nested_error",
        "_reported_tokens",
        "admission",
        "began",
        "failure",
        "guard",
        "idempotent",
        "idle_timer",
        "is_pass_through",
        "loop_state",
        "parent",
        "started",
        "suspend_depth",
        "suspended_at",
        "timer",
        "tokens",
    )

    caller_deadline: Deadline | None = None
    """The deadline that its caller has set, in those that have the slot for one."""
    _attempt_number: int
    _account: TokenAccount
    _nested_error: Exception
    _reported_tokens: int
    guard: Any
    idempotent: bool | None
    parent: Call | None
    loop_state: LoopState
    admission: Admission
    began: float
    started: float
    failure: Failure | None
    timer: Timer | None
    is_pass_through: bool
    idle_timer: Callable[[], IdleTimer | None] | None
    suspend_depth: int
    suspended_at: float
    tokens: tuple[int, int]

    def begin(self, guard: Any, parent: Call | None, now: float) -> None:
        """Fill in what is known at the begin of a call of `guard`."""
        # Guard.run writes this out for speed: a slot that is set here is set there too.
        self.name = guard.name
        self.guard = guard
        self.parent = parent
        self.began = now
        self.timer = self.failure = self.idempotent = self.idle_timer = None
        self.suspend_depth = 0

    @property
    def stage(self) -> Stage:
        """How far it is. It stays ``in_flight`` between two attempts."""
        if hasattr(self, "started"):
            return "in_flight"
        return "queued" if hasattr(self, "admission") else "not_sent"

    @property
    def attempt(self) -> int:
        """Number of the present attempt, from 1."""
        return getattr(self, "_attempt_number", 1)

    @attempt.setter
    def attempt(self, number: int) -> None:
        self._attempt_number = number

    @property
    def nested_error(self) -> Exception | None:
        """The last error of another guard's call inside this one."""
        return getattr(self, "_nested_error", None)

    @nested_error.setter
    def nested_error(self, error: Exception) -> None:
        self._nested_error = error

    @property
    def sent_tokens(self) -> int:
        """An estimate of those in its arguments; 0 where none was made."""
        return getattr(self, "tokens", (0, 0))[1]

    @property
    def reported_tokens(self) -> int | None:
        """Those that the provider says its present attempt used; None where it says nothing."""
        reported = getattr(self, "_reported_tokens", -1)
        return reported if reported >= 0 else None

    @reported_tokens.setter
    def reported_tokens(self, tokens: int | None) -> None:
        self._reported_tokens = -1 if tokens is None else tokens

    @property
    def account(self) -> TokenAccount | None:
        """The query or document that its tokens belong to."""
        return getattr(self, "_account", None)

    @account.setter
    def account(self, account: TokenAccount) -> None:
        self._account = account

    @property
    def running_task(self) -> asyncio.Task[object] | None:
        """The task to cancel for it; None where no timer knows it."""
        if self.idle_timer is None:
            return getattr(self, "task", None)
        # A stream may be read by another task than the one that opened it.
        timer = self.idle_timer()
        return None if timer is None else timer.task

    @property
    def is_streaming(self) -> bool:
        """Whether it lasts until its stream ends."""
        return self.idle_timer is not None

    def become_stream(self, idle_timer: IdleTimer) -> None:
        """Last until the stream that `idle_timer` times has ended."""
        self.idle_timer = ref(idle_timer)
        # The result of the task may be the stream, which must be freed when it is dropped.
        with contextlib.suppress(AttributeError):
            del self.task

    @contextlib.contextmanager
    def suspend_timers(self) -> Iterator[None]:
        """Suspend its timers: in this block another dependency works."""
        guard = self.guard
        if guard is None:  # it has ended, and left a task behind
            yield
            return
        self.suspend_depth += 1
        if self.suspend_depth == 1:
            self.suspended_at = guard.clock()
            if self.idle_timer is not None:
                if (idle_timer := self.idle_timer()) is not None:
                    idle_timer.pause()
            elif self.timer is not None:
                self.timer.pause(self)
        try:
            yield
        finally:
            self.suspend_depth -= 1
            if self.suspend_depth == 0 and self.guard is not None:
                self._resume_timers(guard.clock())

    def _resume_timers(self, now: float) -> None:
        """Go on as if there had been no pause; an attempt, or the wait for an item, starts anew."""
        paused = now - self.suspended_at
        self.began += paused
        self.started += paused
        if self.idle_timer is not None:
            if (idle_timer := self.idle_timer()) is not None:
                idle_timer.resume(now)
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


class CallUnderDeadline(Call):
    """A call whose caller has set a deadline. It keeps that when the caller's block has ended."""

    __slots__ = ("caller_deadline",)


class Deadline(Call):
    """A deadline, in the place of a guarded call around the calls that it is for.

    So a guard finds it where it looks for such a call anyway, and a call without one costs nothing.

    Args:
        seconds: How long the block may take.
        clock: Monotonic seconds.
        reason: How an error names the limit, as a clause.
        parent: The call or the deadline around it.

    Attributes:
        is_over: Whether the block has ended. A task that was begun in it has no deadline then.
    """

    __slots__ = ("_clock", "_ends", "_slow", "is_over", "reason")

    def __init__(
        self, seconds: float, clock: Callable[[], float], reason: str, parent: Call | None
    ) -> None:
        self.parent = parent
        self.guard = self.timer = self.idle_timer = None
        self.suspend_depth = 0
        self.is_over = False
        self.reason = reason
        self._clock = clock
        self._ends = clock() + seconds
        self._slow = ""

    def copy(self) -> Deadline:
        """The same deadline for another context, in which its calls are inside of nothing else."""
        return Deadline(self.left, self._clock, self.reason, None)

    @property
    def left(self) -> float:
        """Seconds left; below 0 afterwards."""
        return self._ends - self._clock()

    def error(self, dependency: str) -> DeadlineExceededError:
        """The error of a call that has not ended by then. It names the dependency that was first.

        The calls that follow are not sent: the time was used up before them.
        """
        self._slow = self._slow or dependency
        return DeadlineExceededError(self._slow, None, self.reason)

    @contextlib.contextmanager
    def suspend_timers(self) -> Iterator[None]:
        """Suspend the timers of the call around it, but not the deadline itself."""
        with contextlib.nullcontext() if self.parent is None else self.parent.suspend_timers():
            yield

    @property
    def nested_error(self) -> Exception | None:
        """That of the call around it."""
        return None if self.parent is None else self.parent.nested_error

    @nested_error.setter
    def nested_error(self, error: Exception) -> None:
        if self.parent is not None:
            self.parent.nested_error = error


current_call: ContextVar[Call | None] = ContextVar("lightrag_resilience_call", default=None)


def guarded_call() -> Call | None:
    """The innermost guarded call that the present code runs inside; None outside of any."""
    call = current_call.get()
    while call is not None and call.guard is None:
        call = call.parent
    return call


def inside_guarded_call() -> bool:
    """Whether the present code runs inside a guarded call, whose guard does the retrying."""
    return guarded_call() is not None


def deadline_of(call: Call | None) -> Deadline | None:
    """The deadline around a call, or the call itself if it is one; None without one."""
    while call is not None:
        if isinstance(call, Deadline) and not call.is_over:
            return call
        call = call.parent
    return None


def current_deadline() -> Deadline | None:
    """The deadline of the present code; None without one."""
    return deadline_of(current_call.get())
