"""The work that a call of LightRAG belongs to: a query waits for a moment, ingest for long."""

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
from lightrag_resilience.calls.token_account import TokenAccount, current_account
from lightrag_resilience.composition.wait_for_recovery import Patience, retry_until_available
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
    "note_failure",
    "reached",
    "stage_of",
]

_MAX_CAUSES = 8
_KEPT = 100  # failures


class WorkContext:
    """One query or one run of ingest, and what failed in it.

    Args:
        ingest_patience: Seconds for which each call of ingest waits for an unavailable dependency;
            None for a query.
        query_patience: For how long the calls of a query wait together; None fails at once.

    Attributes:
        failures: For each dependency whose last call failed, the error.
        last: The dependency that failed last, and its error; None before the first.
        causes: The texts of the last errors, and whether each is transient. Never logged or stored.
    """

    __slots__ = ("_ingest_patience", "_query_patience", "causes", "failures", "last")

    def __init__(
        self,
        ingest_patience: float | None = None,
        query_patience: Patience | None = None,
    ) -> None:
        self._ingest_patience = ingest_patience
        self._query_patience = query_patience
        self.failures: dict[str, Exception] = {}
        self.last: tuple[str, Exception] | None = None
        self.causes: deque[tuple[str, bool]] = deque(maxlen=_KEPT)

    @property
    def is_ingest(self) -> bool:
        """Whether it is a run of ingest."""
        return self._ingest_patience is not None

    @property
    def patience(self) -> Patience | None:
        """For how long its next call waits for an unavailable dependency; None: not at all."""
        if self._ingest_patience is None:
            return self._query_patience
        return Patience(self._ingest_patience)

    def failed(self, dependency: str, error: Exception) -> None:
        """A call of this work failed."""
        self.failures[dependency] = error
        self.last = dependency, error
        is_rejected = isinstance(error, CallRejected)
        is_transient = is_rejected or classify(error).kind is not FailureKind.FATAL
        self.causes.append((str(error), is_transient))

    def succeeded(self, dependency: str) -> None:
        """A call of this work succeeded."""
        if self.failures:
            self.failures.pop(dependency, None)


class Request:
    """An HTTP request.

    Attributes:
        last: The dependency and error of the last guarded call that failed in it.
        is_cut_off: Whether that error ended the stream of an answer.
        is_refused: Whether the answer says that a dependency failed.
        is_over: Whether it is answered; background work that it started may go on.
        held: Log records about it, kept until its outcome is known; None if they are written at
            once.
    """

    __slots__ = ("held", "is_cut_off", "is_over", "is_refused", "last")

    def __init__(self) -> None:
        self.last: tuple[str, Exception] | None = None
        self.is_cut_off = False
        self.is_refused = False
        self.is_over = False
        self.held: list[logging.LogRecord] | None = None


class Stage(enum.Enum):
    """How far the error of a guarded call has come. Later log records about it are repetitions."""

    QUEUED = "raised by the guard into LightRAG's queue"
    RAISED = "raised to LightRAG"


_STAGE = "_resilience_stage"


def reached(error: Exception, stage: Stage) -> None:
    """Note the stage of a guarded call's error."""
    vars(error)[_STAGE] = stage


def stage_of(error: BaseException) -> Stage | None:
    """The stage of an error or of one of its causes; None if no guarded call raised any of them."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
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


async def call_guarded(  # noqa: PLR0913 - most by name
    guard: Guard,
    call: Callable[[], Awaitable[Any]],
    *,
    idempotent: bool | None = None,
    is_foreign: Callable[[Exception], bool] = lambda _: False,
    is_needed: bool = True,
    patience: Patience | None = None,
) -> Any:
    """Make a call for the current work, which may wait for the dependency.

    Inside a call of another guard, that call's timers are suspended meanwhile, and it gets this
    call's error as `nested_error`.

    Args:
        guard: The guard that `call` goes through.
        call: Makes the call.
        idempotent: Whether it may be repeated; None leaves that to the guard's policy.
        is_foreign: Whether an error is that of another dependency.
        is_needed: Whether a query cannot be answered without it, and therefore waits.
        patience: For how long it waits, with the other calls that share it; None: as the work says.
    """
    work = current_work.get()
    if patience is None and work is not None and (is_needed or work.is_ingest):
        patience = work.patience
    outer = current_call.get()
    try:
        with contextlib.nullcontext() if outer is None else outer.suspend_timers():
            if patience is not None:
                result = await retry_until_available(
                    guard,
                    call,
                    patience=patience,
                    idempotent=idempotent,
                    is_foreign=is_foreign,
                    is_background=work is not None and work.is_ingest,
                )
            else:
                guard.refuse_if_open()
                result = await call()
    except Exception as error:
        if isinstance(error, ShuttingDownError) and (run := current_run.get()) is not None:
            await run.park_until_exit()  # if raised, LightRAG would mark the document as failed
        reached(error, Stage.RAISED)
        if outer is not None:
            outer.nested_error = error
        if not is_foreign(error):
            note_failure(error, guard.name, work)
        raise
    if work is not None:
        work.succeeded(guard.name)
    return result


def note_failure(error: Exception, dependency: str, work: WorkContext | None) -> None:
    """A call of this work, and of the current request, failed."""
    if work is not None:
        work.failed(dependency, error)
    if (request := current_request.get()) is not None:
        request.last = dependency, error


def is_caused_by(error: BaseException, origin: BaseException | None) -> bool:
    """Whether `origin` caused an error, also if both wrap the same root cause."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None or origin is None:
            return False
        if cause is origin or root_cause(cause) is root_cause(origin):
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def as_work(
    method: Callable[..., Awaitable[Any]], patience: float | None = None
) -> Callable[..., Any]:
    """A method whose calls are one piece of work, unless it is called by another.

    With patience its calls have background priority: queries go first.
    """

    @functools.wraps(method)
    async def as_work(*args: Any, **kwargs: Any) -> Any:
        if current_work.get() is not None:
            return await method(*args, **kwargs)
        token = current_work.set(WorkContext(ingest_patience=patience))
        # For stages that are not of one document, and for LightRAG 1.4.
        account = current_account.get() if patience is None else TokenAccount("document")
        accounts = current_account.set(account)
        level = Priority.INTERACTIVE if patience is None else Priority.BACKGROUND
        try:
            with priority(level):
                return await method(*args, **kwargs)
        finally:
            current_work.reset(token)
            current_account.reset(accounts)

    return as_work
