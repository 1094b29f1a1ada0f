"""Texts of ``RESILIENCE_*`` variables become values; everything wrong with them is named at once.

pydantic checks them. Its models are made from the declared settings, which know their bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from lightrag_resilience.text import LONGEST_TEXT, printable

from .policies import PARTS
from .process_settings import ProcessSettings
from .validation import Setting, settings_of, text_format
from .variables import PREFIX, PROCESS_VARIABLES, is_misspelt, nearest, variable

__all__ = ["SECTIONS", "Problem", "parse_overrides", "parse_variables"]

SECTIONS = "overrides_by_section"
"""The value that holds what variables set for dependencies."""

_LONGEST_SHOWN = 60  # characters
_LONGEST_GUESSED = 100  # characters of a name; a longer one is no spelling mistake
_MOST_SUGGESTIONS = 10  # in one error, since finding each takes milliseconds

Problem = tuple[str, str]
"""A variable, and a sentence that says what is wrong with it."""


def parse_variables(
    found: Mapping[str, str], *, suggest: bool = True
) -> tuple[dict[str, Any], list[Problem]]:
    """Read variables.

    Args:
        found: Names in capitals, and texts.
        suggest: Whether to search for the variable that an unknown name was meant to be, which
            takes milliseconds.

    Returns:
        The values that are set, by the fields of `Settings`; empty if there is a problem.
        Then the problems.
    """
    try:
        return _Variables.model_validate(_sorted(found)).model_dump(exclude_unset=True), []
    except ValidationError as error:
        return {}, list(_problems(error, found, suggest=suggest))


def parse_overrides(
    found: Mapping[str, str], *, suggest: bool
) -> tuple[dict[str, Any], list[Problem]]:
    """Read variables that are set while the process runs: only those of policies can be.

    Returns:
        What they set, by section; empty if there is a problem. Then the problems.
    """
    problems = [
        (name, f"{name} is read at the start only") for name in found.keys() & PROCESS_VARIABLES
    ]
    problems += [
        (name, f"{shown} is not known: the names of variables begin with {PREFIX}")
        for name in found
        if not name.startswith(PREFIX)
        for shown in [printable(name, LONGEST_TEXT)]
    ]
    if problems:
        return {}, problems
    values, problems = parse_variables(found, suggest=suggest)
    return values.get(SECTIONS, {}), problems


# ---------------------------------------------------------------------- models from declarations


def _reader(hint: Any) -> Callable[[str], Any]:
    """What prepares the text of a variable for its type."""
    has_none = NoneType in get_args(hint)
    text_of = text_format(hint)
    read: Callable[[str], Any] = str.lower if get_origin(hint) is Literal else str
    if text_of is not None:
        read = text_of.read
    return lambda text: None if has_none and text.lower() == "none" else read(text)


def _model_of(name: str, cls: Any) -> type[BaseModel]:
    """A model of the settings that a dataclass declares, none of them required."""
    return create_model(name, __config__=ConfigDict(extra="forbid"), **_fields_of(cls))


def _fields_of(cls: Any) -> dict[str, Any]:
    return {
        name: (Annotated[each.hint, BeforeValidator(_reader(each.hint))], each.default)
        for name, each in settings_of(cls).items()
    }


def _sorted(found: Mapping[str, str]) -> dict[str, Any]:
    """Sort variables into sections by the two underscores in their names."""
    tree: dict[str, Any] = {SECTIONS: {}}
    for name, text in found.items():
        section, *rest = name.removeprefix(PREFIX).split("__")
        if len(rest) == 2 and name.isascii() and not is_misspelt(section):  # noqa: PLR2004 - part and field
            part, key = map(str.lower, rest)
            tree[SECTIONS].setdefault(section, {}).setdefault(part, {})[key] = text
        else:  # pydantic reports a name that is unknown
            tree[PROCESS_VARIABLES.get(name, name)] = text
    return tree


_PARTS: dict[str, Any] = {part: (_model_of(part, policy), None) for part, policy in PARTS.items()}
_Section = create_model("_Section", __config__=ConfigDict(extra="forbid"), **_PARTS)
_FIELDS: dict[str, Any] = {**_fields_of(ProcessSettings), SECTIONS: (dict[str, _Section], {})}  # type: ignore[valid-type]
_Variables = create_model("_Variables", __config__=ConfigDict(extra="forbid"), **_FIELDS)


# ---------------------------------------------------------------------- errors for people


def _problems(
    error: ValidationError, found: Mapping[str, str], *, suggest: bool
) -> Iterator[Problem]:
    suggestions = _MOST_SUGGESTIONS if suggest else 0
    for detail in error.errors():
        path = [str(step) for step in detail["loc"]]
        if detail["type"] == "extra_forbidden":
            for unknown in _unknown_at(path, found):
                yield unknown, _unknown(unknown, suggest=suggestions > 0)
                suggestions -= 1
            continue
        name, setting = _declared_at(path)
        text = text_format(setting.hint)
        if text is not None and text.is_secret:
            yield name, f"{name} {detail.get('ctx', {})['error']}"
        else:
            yield name, f"{name} is {_shown(found[name])}, but must be {setting.allowed}"


def _declared_at(path: list[str]) -> tuple[str, Setting]:
    """The variable of a field of the model, and its declaration."""
    if path[0] != SECTIONS:
        return PREFIX + path[0].upper(), settings_of(ProcessSettings)[path[0]]
    _, section, part, field = path
    return variable(section, part, field), settings_of(PARTS[part])[field]


def _unknown_at(path: list[str], found: Mapping[str, str]) -> list[str]:
    """The variables that nothing declares: one, or all those of an unknown part."""
    match path:
        case [name]:
            return [name]
        case [_, section, part, field]:
            return [variable(section, part, field)]
        case _:
            start = variable(path[1], path[2], "")
            return [name for name in found if name.startswith(start)]


def _unknown(name: str, *, suggest: bool) -> str:
    meant = nearest(name) if suggest and len(name) <= _LONGEST_GUESSED else None
    return f"{printable(name, LONGEST_TEXT)} is not known" + (
        f"; did you mean {meant}?" if meant else ""
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")
