"""The names of ``RESILIENCE_*`` variables: built, recognised, and corrected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from .dependency_names import DEFAULT, nearly
from .policies import FAMILIES, PARTS
from .process_settings import ProcessSettings
from .validation import settings_of

__all__ = [
    "PREFIX",
    "PROCESS_VARIABLES",
    "is_misspelt",
    "is_of_a_service",
    "nearest",
    "variable",
]

PREFIX = "RESILIENCE_"
PROCESS_VARIABLES = {f"{PREFIX}{name.upper()}": name for name in settings_of(ProcessSettings)}
"""The variables of no dependency, and the setting of each."""

_KNOWN = (DEFAULT, *(family.upper() for family in FAMILIES))
_ALIKE = 0.6  # difflib's own cutoff
_NEARLY_SAME = 0.93

_PORT = r"PORT_[0-9]+_(?:TCP|UDP|SCTP)"
_HOST, _NUMBER, _ADDRESS = r"[\w.:-]+", "[0-9]{1,5}", r"(?:tcp|udp|sctp)://[\w.:\[\]-]+:[0-9]{1,5}"
_OF_A_SERVICE = (
    ("SERVICE_HOST", _HOST),
    (r"SERVICE_PORT(?:_\w+)?", _NUMBER),
    (f"PORT|{_PORT}", _ADDRESS),
    (f"{_PORT}_PROTO", "tcp|udp|sctp"),
    (f"{_PORT}_PORT", _NUMBER),
    (f"{_PORT}_ADDR", _HOST),
)
"""How the name of such a variable ends, and the form of its value."""


def variable(section: str, part: str, name: str) -> str:
    """The variable of one field: ``RESILIENCE_LLM__RETRY__ATTEMPTS``."""
    return f"{PREFIX}{section}__{part}__{name}".upper()


def is_of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes or Docker sets this variable, in each container, for a service.

    A service ``resilience-redis`` is ``RESILIENCE_REDIS_SERVICE_HOST`` and further ones.
    """
    return any(
        re.fullmatch(rf"{PREFIX}(?:\w+_)?(?:{end})", name) and re.fullmatch(what, value)
        for end, what in _OF_A_SERVICE
    )


def is_misspelt(section: str) -> bool:
    """Whether the first word of a section is nearly, but not exactly, a family's name."""
    word = section.partition("_")[0]
    return word not in _KNOWN and nearly(word, _KNOWN) is not None


def nearest(unknown: str) -> str | None:
    """The variable that an unknown name was probably meant to be."""
    sections = {*_KNOWN, *_sections_in(unknown)}
    names = [*PROCESS_VARIABLES]
    for part, policy in PARTS.items():
        names += (
            variable(section, part, name) for section in sections for name in settings_of(policy)
        )
    by_letters = {_letters(name): name for name in sorted(names)}
    # The likeliest mistake is a wrong letter, then a field that exists in another part.
    end = _letters("__" + unknown.rpartition("__")[2])
    with_its_field = [letters for letters in by_letters if letters.endswith(end)]
    for candidates, cutoff in (
        (list(by_letters), _NEARLY_SAME),
        (with_its_field, _ALIKE),
        (list(by_letters), _ALIKE),
    ):
        if found := get_close_matches(_letters(unknown), candidates, n=1, cutoff=cutoff):
            return by_letters[found[0]]
    return None


def _letters(name: str) -> str:
    """A name without the common prefix, and with one underscore for two, a likely mistake."""
    return name.removeprefix(PREFIX).replace("__", "_")


def _sections_in(unknown: str) -> Iterator[str]:
    """Texts in an unknown name that may be its section."""
    rest = unknown.removeprefix(PREFIX)
    section, double, _ = rest.partition("__")
    guesses = [section] if double else []
    guesses += (rest.partition(f"_{part.upper()}_")[0].rstrip("_") for part in PARTS)
    return (guess for guess in guesses if guess and guess != rest and not is_misspelt(guess))
