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
"""The seconds of an operation, what is known of it, and the type of its error."""

_OURS = "lightrag_resilience."
_NONE: Mapping[str, Any] = {}

_blocks: dict[Call | None, tuple[Operation, Token[Context] | None]] = {}
"""Blocks under way, and what restores the context at their end; None between whose items a reader
runs, which is not below them."""


class Tracing:
    """Makes the spans of one set of guards.

    Args:
        tracer: OpenTelemetry's.
        measured: Told of each operation at its end.

    Attributes:
        streams: Operations that last until their stream ends, by their calls.
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
        """A call begins, of a function or a block."""
        known = attributes_of(dependency, function, kwargs)
        attributes = {**known, _OURS + "dependency": dependency}
        span = self._start(span_name(dependency, known), SpanKind.CLIENT, attributes)
        return Operation(self, span, known)

    def begin_query(self, workspace: str) -> Operation:
        """A query of a protected LightRAG begins."""
        attributes = {_OURS + "workspace": workspace}
        return Operation(self, self._start("lightrag query", SpanKind.INTERNAL, attributes), {})

    def _start(self, name: str, kind: SpanKind, attributes: dict[str, str]) -> Span:
        if (identity := correlation_id()) is not None:
            attributes[_OURS + "request_id"] = identity
        return self.tracer.start_span(name, _context_of_block(), kind=kind, attributes=attributes)

    def settled(self, call: Call, error: BaseException | None) -> None:
        """An attempt of a call is over; where a stream came of it, its spans are."""
        operation = self.streams.pop(call, None)
        if operation is None:
            return
        operation.end_attempt(error)
        if call.is_streaming:
            operation.end(error)
        elif not isinstance(error, GeneratorExit):
            operation.leave()

    def close(self) -> None:
        """End the streams that are read: what comes after is not seen."""
        while self.streams:
            _, operation = self.streams.popitem()
            operation.end_attempt(None)
            operation.end()


class Operation:
    """A call from its begin to its end.

    Args:
        tracing: Whose it is.
        span: Its span.
        known: What the conventions for generative AI want of it; nothing where it is none.
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
        """Whether it goes on when its call has returned: a stream is read."""
        return self._attempt is not None

    def around(
        self, function: Callable[..., Coroutine[Any, Any, R]]
    ) -> Callable[..., Coroutine[Any, Any, R]]:
        """A function whose calls are attempts. Their span is the current one while it runs."""

        async def attempt(*args: Any, **kwargs: Any) -> Any:
            self._begin_attempt()
            try:
                result: Any = await function(*args, **kwargs)
            except GeneratorExit as left:  # by the garbage collector, in the context of other code
                self.end_attempt(left)
                raise
            except BaseException as error:
                self.leave()
                self.end_attempt(_timeout_behind(error) or error)
                raise
            call = current_call.get()
            if call is not None and is_stream(result.__class__):
                self._tracing.streams[call] = self  # current until the first item is there
                return result
            self.leave()
            self.end_attempt(None)
            return result

        return attempt

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Let what is called in this block be below it."""
        token = attach(self.context)
        try:
            yield
        except GeneratorExit:  # by the garbage collector, in the context of other code
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

    def leave(self) -> None:
        """The span of the attempt is no longer the current one."""
        token, self._token = self._token, None
        if token is not None:
            detach(token)

    def end_attempt(self, error: BaseException | None) -> None:
        """The attempt is over."""
        span, self._attempt = self._attempt, None
        if span is not None:
            _end(span, error)

    def end(self, error: BaseException | None = None, outcome: str | None = None) -> None:
        """The whole is over."""
        if self._number:
            self._span.set_attribute(_OURS + "attempts", self._number)
        if outcome is not None:
            self._span.set_attribute(_OURS + "outcome", outcome)
        kind = _end(self._span, error)
        if self._known:
            self._tracing.measured(time.monotonic() - self._began, self._known, kind)


def _end(span: Span, error: BaseException | None) -> str | None:
    """End a span; an error's text may hold a prompt, so that its class alone is kept."""
    kind = None
    if error is not None:
        kind = error_type(root_cause(error) if isinstance(error, Exception) else error)
        span.set_attribute("error.type", kind)
        if isinstance(error, Exception):  # no error, where somebody has only given up
            span.set_status(StatusCode.ERROR)
    span.end()
    return kind


def _timeout_behind(error: BaseException) -> Exception | None:
    """What a cancellation by the guard itself will be to the caller."""
    call = current_call.get()
    if call is None or call.timer is None or not isinstance(error, asyncio.CancelledError):
        return None
    return AttemptTimeoutError(call.name) if call.expired else None


class TracedGuard(Guard):
    """A guard whose calls are seen; `instrument` makes a subclass with what sees them.

    A method may begin when the guard is of its own class again, as Python found it before: none of
    them relies on ``super()``, or on `tracing`.
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
        if isinstance(call := current_call.get(), BlockBetweenItems):
            _detach(token)
            token = None
        _blocks[call] = operation, token
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened = _blocks.pop(open_block(self), None)
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
    """As `detach`, which logs an error where a block ends in another context."""
    if token is not None:
        with contextlib.suppress(ValueError):
            token.var.reset(token)


def _context_of_block() -> Context | None:
    """That of the block that this is in, where it is not the current one."""
    call = current_call.get()
    if not isinstance(call, BlockBetweenItems) or call.guard is None:
        return None
    opened = _blocks.get(call)
    return None if opened is None else opened[0].context


def _tracing_of(guard: Guard) -> Tracing | None:
    return getattr(guard, "tracing", None)


def _is_inside(guard: Guard) -> bool:
    """Whether this is part of a call of the same guard, and passes straight through."""
    parent = current_call.get()
    return parent is not None and parent.is_within(guard)


def _settled(guard: Guard, call: Call, error: BaseException | None) -> None:
    if (tracing := _tracing_of(guard)) is not None:
        tracing.settled(call, error)
