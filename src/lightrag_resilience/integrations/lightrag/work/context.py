"""On whose behalf LightRAG calls a dependency: a query fails at once, ingest waits."""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from lightrag_resilience.calls.call_context import current_call
from lightrag_resilience.composition.wait_for_recovery import retry_until_available
from lightrag_resilience.errors import CallRejected, ShuttingDownError
from lightrag_resilience.failures.classifier import FailureKind, classify, root_cause
from lightrag_resilience.limits.priority import Priority, priority
from lightrag_resilience.pipeline.guard import Guard

from .ingest import current_run

__all__ = [
    "Request",
    "Stage",
    "WorkContext",
    "as_work",
    "call_guarded",
    "current_request",
    "current_work",
    "is_caused_by",
    "reached",
    "stage_of",
]

_DEEPEST = 8  # causes
_REMEMBERED = 100  # failures


class WorkContext:
    """A piece of work of LightRAG's, and what failed in it.

    Args:
        patience: Seconds that its calls wait for a dependency that is away; None fails at once.

    Attributes:
        failures: For each dependency whose last call failed, the error.
        last: The dependency that failed last, and its error; None before the first.
        causes: The texts of the last errors, and whether waiting may mend each. They stay here.
    """

    __slots__ = ("causes", "failures", "last", "patience")

    def __init__(self, patience: float | None = None) -> None:
        self.patience = patience
        self.failures: dict[str, Exception] = {}
        self.last: tuple[str, Exception] | None = None
        self.causes: deque[tuple[str, bool]] = deque(maxlen=_REMEMBERED)

    def failed(self, dependency: str, error: Exception) -> None:
        """A call of this work failed."""
        self.failures[dependency] = error
        self.last = dependency, error
        is_refusal = isinstance(error, CallRejected)
        is_transient = is_refusal or classify(error).kind is not FailureKind.FATAL
        self.causes.append((str(error), is_transient))

    def succeeded(self, dependency: str) -> None:
        """A call of this work succeeded."""
        if self.failures:
            self.failures.pop(dependency, None)


class Request:
    """An HTTP request.

    Attributes:
        last: The dependency and error of the last guarded call that failed in it.
        is_cut_off: Whether that ended the stream of an answer that was begun.
        is_refused: Whether that is its answer.
        is_over: Whether it is answered; what it has begun may go on.
        held: What others write to the log about it until it is known how it ends; None where that
            is written at once.
    """

    __slots__ = ("held", "is_cut_off", "is_over", "is_refused", "last")

    def __init__(self) -> None:
        self.last: tuple[str, Exception] | None = None
        self.is_cut_off = False
        self.is_refused = False
        self.is_over = False
        self.held: list[logging.LogRecord] | None = None


class Stage(enum.Enum):
    """How far the error of a guarded call has come: what is written of it tells nothing new."""

    QUEUED = "out of the guard, and into LightRAG's queue"
    RAISED = "out of all that protects the call"


_STAGE = "_resilience_stage"


def reached(error: Exception, stage: Stage) -> None:
    """An error of a guarded call has come so far."""
    vars(error)[_STAGE] = stage


def stage_of(error: BaseException) -> Stage | None:
    """The stage of an error, or of one that led to it; None where no guarded call raised it."""
    cause: BaseException | None = error
    for _ in range(_DEEPEST):
        if cause is None:
            break
        stage = vars(cause).get(_STAGE)
        if isinstance(stage, Stage):
            return stage
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


current_request: ContextVar[Request | None] = ContextVar(
    "lightrag_resilience_request", default=None
)
current_work: ContextVar[WorkContext | None] = ContextVar("lightrag_resilience_work", default=None)


async def call_guarded(
    guard: Guard,
    call: Callable[[], Awaitable[Any]],
    *,
    idempotent: bool | None = None,
    is_foreign: Callable[[Exception], bool] = lambda _: False,
) -> Any:
    """Make a call for the present work: wait for the dependency, or be refused before any queue.

    Where it is made inside a call of another guard, that one's time does not run meanwhile, and it
    learns what this one failed with. `is_foreign` tells what another dependency has failed with.
    """
    work = current_work.get()
    outer = current_call.get()
    try:
        with contextlib.nullcontext() if outer is None else outer.suspend_timers():
            if work is not None and work.patience is not None:
                result = await retry_until_available(
                    guard,
                    call,
                    patience=work.patience,
                    idempotent=idempotent,
                    is_foreign=is_foreign,
                )
            else:
                guard.refuse_if_open()
                result = await call()
    except Exception as error:
        if isinstance(error, ShuttingDownError) and (run := current_run.get()) is not None:
            await run.park_until_exit()  # LightRAG would fail a document for it
        reached(error, Stage.RAISED)
        if outer is not None:
            outer.nested_error = error
        if not is_foreign(error):
            _tell(error, guard.name, work)
        raise
    if work is not None:
        work.succeeded(guard.name)
    return result


def _tell(error: Exception, dependency: str, work: WorkContext | None) -> None:
    if work is not None:
        work.failed(dependency, error)
    if (request := current_request.get()) is not None:
        request.last = dependency, error


def is_caused_by(error: BaseException, origin: BaseException | None) -> bool:
    """Whether `origin` led to an error, also through those that were raised in its place."""
    cause: BaseException | None = error
    for _ in range(_DEEPEST):
        if cause is None or origin is None:
            return False
        if cause is origin or root_cause(cause) is root_cause(origin):
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def as_work(
    method: Callable[..., Awaitable[Any]], patience: float | None = None
) -> Callable[..., Any]:
    """A method all of whose calls are one piece of work, unless it is part of another.

    With patience they are made in the background: queries go before them.
    """

    @functools.wraps(method)
    async def as_work(*args: Any, **kwargs: Any) -> Any:
        if current_work.get() is not None:
            return await method(*args, **kwargs)
        token = current_work.set(WorkContext(patience))
        level = Priority.INTERACTIVE if patience is None else Priority.BACKGROUND
        try:
            with priority(level):
                return await method(*args, **kwargs)
        finally:
            current_work.reset(token)

    return as_work
