"""Names of dependencies: which are valid, and what a misspelt one was meant to be."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightrag_resilience.errors import PolicyError
from lightrag_resilience.text import printable

from .policies import FAMILIES

__all__ = ["DEFAULT", "check_name", "nearly", "section_of", "sections_for"]

DEFAULT = "DEFAULT"
"""The section of a variable that sets a field for all dependencies."""

_LONGEST_NAME = 200  # characters
_SHOWN = 60
_NOT_MISSPELT = frozenset({"vllm"})  # close to "llm", but the name of a server
_CUTOFF = 0.85  # difflib's ratio from which a spelling mistake is likely


def check_name(name: object) -> None:
    """Check the name of a dependency.

    Raises:
        PolicyError: It is not text, too long, or has empty parts or unprintable characters; or it
            begins with a misspelt family, and would silently get other defaults.
    """
    if not isinstance(name, str):
        raise PolicyError(
            f"A dependency's name is a text such as 'llm.openai', not a {type(name).__name__}"
        )
    shown = repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
    if len(name) > _LONGEST_NAME:
        problem = f"has {len(name)} characters: take at most {_LONGEST_NAME}"
    elif name != printable(name):
        problem = f"has characters that cannot be printed: {printable(name)!r} has none"
    elif any(part != part.strip() or not part for part in name.split(".")):
        better = ".".join(filter(None, map(str.strip, name.split("."))))
        problem = f"has a part that is empty or has spaces around it: {_or(better)}"
    elif (meant := _meant(name)) is not None:
        family = meant.partition(".")[0]
        problem = f"would not have the defaults and the variables of {family!r}: {_or(meant)}"
    else:
        return
    raise PolicyError(f"The dependency's name {shown} {problem}")


def _or(better: str) -> str:
    return f"did you mean {better!r}?" if better else "such as 'llm.openai'"


def _meant(name: str) -> str | None:
    """The name that a misspelt one was meant to be; None if it is not misspelt."""
    first, *_ = re.split(r"[^A-Za-z0-9]", name)
    if (
        name.partition(".")[0] in FAMILIES
        or first.lower() in _NOT_MISSPELT
        or (family := nearly(first.lower(), FAMILIES)) is None
    ):
        return None
    rest = name[len(first) :].strip("._:/- ")
    return f"{family}.{rest.lower()}" if rest else family


def section_of(name: str) -> str:
    """The section of a dependency's variables: ``LLM_OPENAI`` for ``llm.openai``."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper())


def sections_for(name: str) -> list[str]:
    """The sections that set a dependency's policy, the most exact one last."""
    parts = name.split(".")
    return [DEFAULT, *(section_of(".".join(parts[:end])) for end in range(1, len(parts) + 1))]


def nearly(word: str, known: Sequence[str]) -> str | None:
    """The known word that a misspelt one was meant to be; None if none is close."""
    from difflib import get_close_matches  # noqa: PLC0415 - slow to import, rarely needed

    found = get_close_matches(word, known, n=1, cutoff=_CUTOFF)
    return found[0] if found else None
