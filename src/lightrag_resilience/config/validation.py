"""What values a field may have, read from its type: ``Annotated[float, Gt(0), Le(1)] | None``."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le

__all__ = ["describe", "field_hints", "problem_with", "shown"]

_LONGEST_SHOWN = 60  # characters


@lru_cache(maxsize=32)
def field_hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, with their bounds."""
    hints = get_type_hints(cls, include_extras=True)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(cls)}


def problem_with(value: object, hint: Any) -> str | None:
    """Why a value does not fit a hint, as the end of a sentence; None where it fits."""
    return None if _fits(value, hint) else f"must be {describe(hint)}, not {shown(value)}"


def shown(value: object) -> str:
    """A value as a person wrote it, of any length; where it cannot be shown, what it is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a number of too many digits, or a class that cannot say
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def describe(hint: Any) -> str:
    """What a hint allows, in words, such as ``a number above 0 and at most 1, or none``."""
    options = get_args(hint)
    if NoneType in options:
        return f"{describe(options[0])}, or none"
    if hint is bool:
        return "true or false"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(options)}"
    number, *bounds = options
    noun = "a whole number" if number is int else "a number"
    return f"{noun} {' and '.join(map(_words, bounds))}"


def _fits(value: object, hint: Any) -> bool:
    options = get_args(hint)
    if NoneType in options:
        return value is None or _fits(value, options[0])
    if hint is bool:
        return isinstance(value, bool)
    if get_origin(hint) is Literal:
        return value in options
    number, *bounds = options
    if isinstance(value, bool) or not isinstance(value, int if number is int else (int, float)):
        return False
    return all(_holds(value, bound) for bound in bounds)


def _holds(value: Any, bound: Gt | Ge | Le) -> bool:
    if isinstance(bound, Gt):
        return bool(value > bound.gt)
    if isinstance(bound, Ge):
        return bool(value >= bound.ge)
    return bool(value <= bound.le)


def _words(bound: Gt | Ge | Le) -> str:
    if isinstance(bound, Gt):
        return f"above {bound.gt}"
    if isinstance(bound, Ge):
        return f"at least {bound.ge}"
    return f"at most {bound.le}"
