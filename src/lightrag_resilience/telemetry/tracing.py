"""A span for each call of a guard, its retries included, and one below it for each attempt.

Tracing changes the class of a live guard, as `Guard` explains: an untraced one pays nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context

from lightrag_resilience.calls.call_context import Call, current_call
from lightrag_resilience.errors import AttemptTimeoutError
from lightrag_resilience.failures.classifier import root_cause
from lightrag_resilience.pipeline.block import BlockBetweenItems, open_block
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.runtime.callables import is_stream

from .correlation import correlation_id
from .genai_conventions import attributes_of, error_type, span_name

__all__ = ["Operation", "TracedGuard", "Tracing"]

R = TypeVar("R")
Measured = Callable[[float, Mapping[str, str], str | None], None]
"""Receives the seconds of an operation, its attributes, and the type of its error."""

_OURS = "lightrag_resilience."
_NONE: Mapping[str, Any] = {}


class Tracing:
    """Makes the spans of one set of guards.

    Args:
        tracer: OpenTelemetry's.
        measured: Called at the end of each operation.

    Attributes:
        streams: Operations that last until their stream ends, by call.
    """

    def __init__(self, tracer: Tracer, measured: Measured) -> None:
        self.tracer = tracer
        self.measured = measured
        self.streams: dict[Call, Operation] = {}

    def begin(
        self,
        dependency: str,
        function: Callable[..., Any] | None = None,
        kwargs: Mapping[str, Any] = _NONE,
    ) -> Operation:
        """Start the span of a call or a block."""
        known = attributes_of(dependency, function, kwargs)
        # Names only: a span leaves the process, and a prompt must not.
        attributes = {**known, _OURS + "dependency": dependency}
        span = self._start(span_name(dependency, known), SpanKind.CLIENT, attributes)
        return Operation(self, span, known)

    def begin_query(self, workspace: str) -> Operation:
        """Start the span of a query of a protected LightRAG."""
        attributes = {_OURS + "workspace": workspace}
        return Operation(self, self._start("lightrag query", SpanKind.INTERNAL, attributes), {})

    def _start(self, name: str, kind: SpanKind, attributes: dict[str, str]) -> Span:
        if (identity := correlation_id()) is not None:
            attributes[_OURS + "request_id"] = identity
        return self.tracer.start_span(name, _context_of_block(), kind=kind, attributes=attributes)

    def settled(self, call: Call, error: BaseException | None) -> None:
        """End the attempt's span; with a stream, end the operation too."""
        operation = self.streams.pop(call, None)
        if operation is None:
            return
        operation.end_attempt(error)
        if call.is_streaming:
            operation.end(error)
        elif not isinstance(error, GeneratorExit):  # that one comes from a foreign context
            operation.detach_attempt()

    def close(self) -> None:
        """End the spans of open streams."""
        while self.streams:
            _, operation = self.streams.popitem()
            operation.end_attempt(None)
            operation.end()


class Operation:
    """The span of a call with all its attempts.

    Args:
        tracing: Its owner.
        span: Its span.
        known: Its attributes by the conventions for generative AI; empty for other calls.
    """

    __slots__ = (
        "_attempt",
        "_began",
        "_known",
        "_number",
        "_span",
        "_token",
        "_tracing",
        "context",
    )

    def __init__(self, tracing: Tracing, span: Span, known: Mapping[str, str]) -> None:
        self.context = set_span_in_context(span)
        self._tracing = tracing
        self._span = span
        self._known = known
        self._began = time.monotonic()
        self._number = 0
        self._attempt: Span | None = None
        self._token: Token[Context] | None = None

    @property
    def lasts(self) -> bool:
        """Whether it goes on after its call has returned, as a stream is read."""
        return self._attempt is not None

    def around(
        self, function: Callable[..., Coroutine[Any, Any, R]]
    ) -> Callable[..., Coroutine[Any, Any, R]]:
        """Wrap a function: each call is an attempt, whose span is current while it runs."""

        async def attempt(*args: Any, **kwargs: Any) -> Any:
            self._begin_attempt()
            try:
                result: Any = await function(*args, **kwargs)
            except GeneratorExit as error:  # from the garbage collector, in a foreign context
                self.end_attempt(error)
                raise
            except BaseException as error:
                self.detach_attempt()
                self.end_attempt(_timeout_behind(error) or error)
                raise
            call = current_call.get()
            if call is not None and is_stream(result.__class__):
                self._tracing.streams[call] = self  # its span is current until the first item
                return result
            self.detach_attempt()
            self.end_attempt(None)
            return result

        return attempt

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the operation's span current within this block."""
        token = attach(self.context)
        try:
            yield
        except GeneratorExit:  # from the garbage collector, in a foreign context: do not detach
            raise
        except BaseException:
            detach(token)
            raise
        detach(token)

    def _begin_attempt(self) -> None:
        self._number += 1
        attributes = {_OURS + "attempt": self._number}
        start = self._tracing.tracer.start_span
        self._attempt = start("attempt", context=self.context, attributes=attributes)
        self._token = attach(set_span_in_context(self._attempt))

    def detach_attempt(self) -> None:
        """Restore the context before the attempt."""
        token, self._token = self._token, None
        if token is not None:
            detach(token)

    def end_attempt(self, error: BaseException | None) -> None:
        """End the span of the attempt."""
        span, self._attempt = self._attempt, None
        if span is not None:
            _end(span, error)

    def end(self, error: BaseException | None = None, outcome: str | None = None) -> None:
        """End the span of the operation."""
        if self._number:
            self._span.set_attribute(_OURS + "attempts", self._number)
        if outcome is not None:
            self._span.set_attribute(_OURS + "outcome", outcome)
        kind = _end(self._span, error)
        if self._known:
            self._tracing.measured(time.monotonic() - self._began, self._known, kind)


def _end(span: Span, error: BaseException | None) -> str | None:
    """End a span. Only the class of an error is recorded: its text may hold a prompt."""
    kind = None
    if error is not None:
        kind = error_type(root_cause(error) if isinstance(error, Exception) else error)
        span.set_attribute("error.type", kind)
        if isinstance(error, Exception):  # a cancellation is not an error
            span.set_status(StatusCode.ERROR)
    span.end()
    return kind


def _timeout_behind(error: BaseException) -> Exception | None:
    """The timeout error that a cancellation by the guard becomes for the caller."""
    call = current_call.get()
    if call is None or call.timer is None or not isinstance(error, asyncio.CancelledError):
        return None
    return AttemptTimeoutError(call.name) if call.expired else None


class TracedGuard(Guard):
    """A guard whose calls are traced; `instrument` makes a subclass with the `tracing`.

    The class may be swapped back after Python has looked up a method and before it runs. So no
    method uses ``super()``, and each tolerates a missing `tracing`.
    """

    __slots__ = ()
    tracing: ClassVar[Tracing]

    async def run(
        self,
        function: Callable[..., Coroutine[Any, Any, R]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        once: bool = False,
        idempotent: bool | None = None,
    ) -> R:
        """As `Guard.run`, in a span."""
        tracing = _tracing_of(self)
        # A call inside a call of the same guard is part of it: a second span would count it twice.
        if tracing is None or _is_inside(self):
            return await Guard.run(self, function, args, kwargs, once=once, idempotent=idempotent)
        operation = tracing.begin(self.name, function, kwargs)
        try:
            with operation.current():
                around = operation.around(function)
                result = await Guard.run(
                    self, around, args, kwargs, once=once, idempotent=idempotent
                )
        except BaseException as error:
            operation.end(error)
            raise
        if not operation.lasts:
            operation.end()
        return result

    def settle_success(
        self, call: Call, duration: float | None = None, answer: object = None
    ) -> None:
        """As `Guard.settle_success`."""
        _settled(self, call, None)
        Guard.settle_success(self, call, duration, answer)

    def settle_error(self, call: Call, error: BaseException) -> None:
        """As `Guard.settle_error`."""
        _settled(self, call, error)
        Guard.settle_error(self, call, error)

    def settle_without_verdict(self, call: Call) -> None:
        """As `Guard.settle_without_verdict`."""
        _settled(self, call, None)
        Guard.settle_without_verdict(self, call)

    async def __aenter__(self) -> Self:
        tracing = _tracing_of(self)
        if tracing is None or _is_inside(self):
            await Guard.__aenter__(self)
            return self
        operation = tracing.begin(self.name)
        token: Token[Context] | None = attach(operation.context)
        try:
            await Guard.__aenter__(self)
        except BaseException as error:
            _detach(token)
            operation.end(error)
            raise
        # Such a block shares its context with the reader, whose spans do not belong below it.
        if isinstance(call := current_call.get(), BlockBetweenItems):
            _detach(token)  # its reader is not below it
            token = None
        self.gate.running[call] = operation, token
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened = self.gate.running.get(open_block(self))
        try:
            await Guard.__aexit__(self, kind, error, traceback)
        except Exception as raised:
            error = raised
            raise
        finally:
            if opened is not None:
                operation, token = opened
                _detach(token)
                operation.end(error)


def _detach(token: Token[Context] | None) -> None:
    """As `detach`, which would log an error where a block ends in another context."""
    if token is not None:
        with contextlib.suppress(ValueError):
            token.var.reset(token)


def _context_of_block() -> Context | None:
    """The context of the enclosing block, where it is not the current one."""
    call = current_call.get()
    if not isinstance(call, BlockBetweenItems) or call.guard is None:
        return None
    opened = call.guard.gate.running.get(call)
    return None if opened is None else opened[0].context


def _tracing_of(guard: Guard) -> Tracing | None:
    return getattr(guard, "tracing", None)


def _is_inside(guard: Guard) -> bool:
    """Whether this runs inside a call of the same guard, which passes straight through."""
    parent = current_call.get()
    return parent is not None and parent.is_within(guard)


def _settled(guard: Guard, call: Call, error: BaseException | None) -> None:
    if (tracing := _tracing_of(guard)) is not None:
        tracing.settled(call, error)
