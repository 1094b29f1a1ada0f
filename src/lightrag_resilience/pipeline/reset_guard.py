"""Guards between a reset and their next use. Whatever holds a guard keeps it through that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from lightrag_resilience.config.policies import Policy

from .guard import Guard

__all__ = ["ResetGuard", "made_anew", "retire"]

_KEPT = frozenset({"__class__", "base", "name"})


class ResetGuard(Guard):
    """A guard that was reset: whatever it is asked makes it anew first, of another class.

    Until then the variables may change, from which its policy comes.
    """

    __slots__ = ()
    make_anew: ClassVar[Callable[[Guard], None]]

    def __getattribute__(self, name: str) -> Any:
        if name not in _KEPT:
            type(self).make_anew(self)
        return object.__getattribute__(self, name)

    async def __aenter__(self) -> Guard:  # type: ignore[override]
        type(self).make_anew(self)
        return await self.__aenter__()


def retire(guard: Guard, cls: type[ResetGuard]) -> None:
    """Make a guard one that was reset."""
    for probe in guard._recovery_probes[-1:]:  # noqa: SLF001
        probe.end()
    guard.__class__ = cls


def made_anew(guard: Guard, cls: type[Guard], name: str, policy: Policy, **parts: Any) -> Guard:
    """A guard that was reset, as a new one; what code has set on it stays."""
    kept = object.__getattribute__
    probes, count_tokens = kept(guard, "_recovery_probes"), kept(guard, "count_tokens")
    guard.__class__ = cls
    cls.__init__(guard, name, policy, **parts)
    guard.count_tokens = count_tokens
    guard._hold_probes(probes)  # noqa: SLF001
    return guard
