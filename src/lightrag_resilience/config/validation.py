"""Settings are declared as fields of dataclasses; their types say which values are allowed.

``rate: Annotated[float, Gt(0), Le(1)] | None = setting(None, "Its sentence.")``
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le

__all__ = [
    "Setting",
    "TextFormat",
    "describe",
    "field_hints",
    "problem_with",
    "setting",
    "settings_of",
    "shown",
    "text_format",
]

T = TypeVar("T")
_LONGEST_SHOWN = 60  # characters


def setting(default: T, sentence: str) -> T:
    """Declare the default of a dataclass's field, and a sentence that says what the field does."""
    return dataclasses.field(default=default, metadata={"sentence": sentence})


# Plain classes, since each dataclass would add 1 ms to every import of the package.


class TextFormat:
    """What a text may be, as metadata of a type that has no numeric bounds.

    Args:
        allowed: It in words.
        read: Makes the value from a text, or raises a ValueError that says what is wrong with it.
        pattern: A regular expression that the whole text matches, if one can say what is allowed.
        is_secret: Whether no error may show the text.
    """

    def __init__(
        self,
        allowed: str,
        read: Callable[[str], Any] = str,
        pattern: str = "",
        *,
        is_secret: bool = False,
    ) -> None:
        self.allowed = allowed
        self.read = read
        self.pattern = pattern
        self.is_secret = is_secret


class Setting:
    """One declared setting: its name, type with bounds, default and sentence."""

    def __init__(self, name: str, hint: Any, default: Any, sentence: str) -> None:
        self.name = name
        self.hint = hint
        self.default = default
        self.sentence = sentence

    @property
    def allowed(self) -> str:
        """Its values in words."""
        return describe(self.hint)


@lru_cache(maxsize=32)
def settings_of(cls: Any) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name.

    Raises:
        TypeError: A field is not declared by `setting()`, so that it has no sentence.
    """
    hints, found = field_hints(cls), {}
    for entry in dataclasses.fields(cls):
        if "sentence" not in entry.metadata:
            raise TypeError(f"{cls.__name__}.{entry.name} has no sentence: declare it by setting()")
        found[entry.name] = Setting(
            entry.name, hints[entry.name], entry.default, entry.metadata["sentence"]
        )
    return found


@lru_cache(maxsize=32)
def field_hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, with their bounds."""
    hints = get_type_hints(cls, include_extras=True)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(cls)}


def problem_with(value: object, hint: Any) -> str | None:
    """Why a value does not fit its type, as the end of a sentence; None where it fits."""
    return None if _fits(value, hint) else f"must be {describe(hint)}, not {shown(value)}"


def shown(value: object) -> str:
    """A value as it is written in code, cut to 60 characters; its type if it has no text."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a number of too many digits, or a __repr__ that fails
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def text_format(hint: Any) -> TextFormat | None:
    """The format that a type declares, if it is one of texts."""
    options = get_args(hint)
    if NoneType in options:
        return text_format(options[0])
    return next((each for each in options if isinstance(each, TextFormat)), None)


def describe(hint: Any) -> str:
    """What a type allows, in words, such as ``a number above 0 and at most 1, or none``.

    Raises:
        TypeError: It sets no bounds.
    """
    options = get_args(hint)
    if NoneType in options:
        return f"{describe(options[0])}, or none"
    if hint is bool:
        return "true or false"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(options)}"
    if (text := text_format(hint)) is not None:
        return text.allowed
    number, *bounds = options or (hint,)
    if number not in (int, float) or not bounds:
        raise TypeError(f"{hint!r} sets no bounds: write Annotated[int, Ge(1), Le(9)] or the like")
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
