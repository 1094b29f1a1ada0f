"""Names of dependencies: what one may be, and which one was probably meant."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightrag_resilience.errors import PolicyError
from lightrag_resilience.text import printable

from .policies import FAMILIES

__all__ = ["check_name", "nearly"]

_LONGEST = 200  # characters
_SHOWN = 60
_NO_SLIPS = frozenset({"vllm"})  # nearly a family's, but the name of a server
_NEARLY = 0.85  # alike, as difflib has it; from here on, a slip is likely


def check_name(name: object) -> None:
    """Let a name through that one and the same guard has everywhere.

    Raises:
        PolicyError: It is no text, or an odd one; or it begins nearly as a family's name does, and
            would silently have other defaults.
    """
    if not isinstance(name, str):
        raise PolicyError(
            f"A dependency's name is a text such as 'llm.openai', not a {type(name).__name__}"
        )
    shown = repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
    if len(name) > _LONGEST:
        problem = f"has {len(name)} characters: take at most {_LONGEST}"
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
    """The name in a family that this one nearly is."""
    first, *_ = re.split(r"[^A-Za-z0-9]", name)
    if (
        name.partition(".")[0] in FAMILIES
        or first.lower() in _NO_SLIPS
        or (family := nearly(first.lower(), FAMILIES)) is None
    ):
        return None
    rest = name[len(first) :].strip("._:/- ")
    return f"{family}.{rest.lower()}" if rest else family


def nearly(word: str, known: Sequence[str]) -> str | None:
    """What is known and a word is, but for a slip; None where it is far from all."""
    from difflib import get_close_matches  # noqa: PLC0415 - slow to import, and seldom needed

    found = get_close_matches(word, known, n=1, cutoff=_NEARLY)
    return found[0] if found else None
