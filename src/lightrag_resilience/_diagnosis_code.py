"""Retries around retries in the code of an application: found by looking at what a module holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import tenacity

from ._diagnosis import Finding, Level

__all__ = ["examine_module"]

_DEEPEST = 20  # decorators around one function
_SDKS = ("openai", "anthropic")


def examine_module(module: ModuleType) -> list[Finding]:
    """Where a guarded function of a module, or a client in it, is retried twice over.

    Seen are tenacity's decorators, and the clients of openai and anthropic that a module holds; not
    what a function makes when it is called.
    """
    return [
        Finding(Level.WARNING, f"{module.__name__}.{name}", problem, advice)
        for name, member in list(vars(module).items())
        for problem, advice in [*_around(member), *_inside(member)]
    ]


def _around(member: Any) -> Iterator[tuple[str, str]]:
    """Loops of tenacity above and below the guard of a function."""
    guard: str | None = None
    above = False
    for layer, below in pairwise([*_layers(member), None]):
        if _own(layer, below, "__resilience_name__"):
            guard = vars(layer)["__resilience_name__"]
            if above:
                yield (
                    (
                        f"tenacity calls it again when the guard {guard!r} has given up, so that "
                        "attempts multiply, and what was refused is called again"
                    ),
                    "remove that decorator: the guard retries, by RETRY__ATTEMPTS",
                )
            above = False
        elif isinstance(_own(layer, below, "retry"), tenacity.BaseRetrying):
            above = True
            if guard is not None:
                yield (
                    (
                        f"it retries by itself inside the guard {guard!r}, so that attempts "
                        "multiply, and the breaker sees one failure of many"
                    ),
                    "remove that decorator, or set RETRY__ATTEMPTS to 1 for this dependency",
                )
                return


def _own(layer: Any, below: Any, name: str) -> Any:
    """An attribute of a decorator; `functools.wraps` gives it those of what it wraps, too."""
    value = vars(layer).get(name)
    return None if below is not None and vars(below).get(name) is value else value


def _layers(member: Any) -> Iterator[Any]:
    """A function, and what it wraps, from outside to inside."""
    for _ in range(_DEEPEST):
        if not callable(member) or not hasattr(member, "__dict__") or isinstance(member, type):
            return
        yield member
        member = vars(member).get("__wrapped__")


def _inside(member: Any) -> Iterator[tuple[str, str]]:
    sdk = type(member).__module__.partition(".")[0]
    retries = getattr(member, "max_retries", 0) if sdk in _SDKS else 0
    if isinstance(retries, int) and retries > 0 and not _yields(sdk):
        yield (
            f"this client of {sdk} makes {retries + 1} attempts of each call by itself",
            f"make it with max_retries=0, or call yield_retries({sdk}); `protect` does the latter",
        )


def _yields(sdk: str) -> bool:
    """Whether `yield_retries` was there."""
    options = getattr(sys.modules.get(f"{sdk}._models"), "FinalRequestOptions", None)
    return hasattr(getattr(options, "get_max_retries", None), "__resilience_users__")
