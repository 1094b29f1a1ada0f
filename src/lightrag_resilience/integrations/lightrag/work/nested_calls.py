"""Guarded calls in which LightRAG makes calls of other guards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from lightrag_resilience.calls.call_context import current_call
from lightrag_resilience.errors import CallRejected
from lightrag_resilience.pipeline.guard import Guard

from .context import call_guarded, is_caused_by

__all__ = ["call_with_nested"]


class _ForeignError(CallRejected):
    """Carries an error of another dependency past a guard: a rejection counts as no failure."""

    def __init__(self, error: Exception) -> None:
        super().__init__("", None, "")
        self.error = error


async def call_with_nested(
    guard: Guard,
    call: Callable[[], Awaitable[Any]],
    *,
    idempotent: bool | None,
    is_foreign: Callable[[Exception], bool],
) -> Any:
    """Make a call for the current work. An error of a nested one says nothing of this dependency.

    Inside a call of the same guard it passes straight through: a storage's batch methods call its
    single ones.

    Args:
        guard: The guard of the call.
        call: Makes it; a vector storage embeds when it flushes, for example.
        idempotent: Whether it may be repeated; None leaves that to the guard's policy.
        is_foreign: Whether an error that no nested call raised is not the dependency's either.
    """
    around = current_call.get()
    if around is not None and around.is_within(guard):
        return await call()
    foreign: list[Exception] = []

    async def attempt() -> Any:
        own = current_call.get()
        try:
            return await call()
        except Exception as error:
            nested_error = None if own is None else own.nested_error
            if is_caused_by(error, nested_error) or is_foreign(error):
                foreign.append(error)
                raise _ForeignError(error) from error
            raise

    async def whole() -> Any:
        try:
            return await guard.run(attempt, (), {}, idempotent=idempotent)
        except _ForeignError as carrier:
            error = carrier.error
        raise error

    return await call_guarded(guard, whole, idempotent=idempotent, is_foreign=foreign.__contains__)
