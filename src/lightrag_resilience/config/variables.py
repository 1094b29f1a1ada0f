"""The names of all ``RESILIENCE_*`` variables, and the page that describes them.

``python -m lightrag_resilience.config.variables`` prints the page.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any

from .dependency_names import nearly
from .policies import FAMILIES, PARTS, Policy
from .validation import describe, field_hints

__all__ = [
    "DEFAULT",
    "PLAIN",
    "PREFIX",
    "Plain",
    "describe_variables",
    "is_misspelt",
    "is_of_a_service",
    "is_token",
    "nearest",
    "section_of",
    "variable",
]

PREFIX = "RESILIENCE_"
DEFAULT = "DEFAULT"
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
"""How such a name ends, and what its value looks like."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A variable that belongs to no dependency."""

    name: str
    default: str
    allowed: str
    meaning: str


PLAIN = (
    Plain(
        f"{PREFIX}REDIS_URL",
        "none",
        "an address such as rediss://user:password@host:6379/0; see docs/operators.md",
        "Where all workers share the state of their breakers; without it each process is alone.",
    ),
    Plain(
        f"{PREFIX}REDIS_PREFIX",
        "lr:",
        "letters, digits, and any of : . _ -, up to 64 of them",
        "What all keys and channels in Redis begin with.",
    ),
    Plain(
        f"{PREFIX}INGEST_PATIENCE",
        "600",
        "a number at least 0 and at most 86400",
        "Seconds that a protected LightRAG's ingest waits for a dependency that is away.",
    ),
    Plain(
        f"{PREFIX}DEGRADE",
        "false",
        "true or false",
        "Whether a protected LightRAG answers a query with what is still there, and says so in the "
        "answer, where a dependency is away; else the query fails.",
    ),
    Plain(
        f"{PREFIX}STALE_ANSWERS",
        "0",
        "a number at least 0 and at most 86400",
        "Seconds for which, with `RESILIENCE_DEGRADE`, an answer is kept in memory to be given "
        "again, marked as old, while a dependency is away; 0 keeps none.",
    ),
    Plain(
        f"{PREFIX}RECOVERY",
        "true",
        "true or false",
        "Whether a protected LightRAG resumes, at its start and when a dependency is back, "
        "the documents that were left in the middle or failed for want of a dependency.",
    ),
    Plain(
        f"{PREFIX}RECOVERY_ATTEMPTS",
        "5",
        "a whole number at least 0 and at most 100",
        "How often a failed document is tried again by itself.",
    ),
    Plain(
        f"{PREFIX}RECOVERY_DELAY",
        "5",
        "a number at least 0 and at most 86400",
        "Seconds before documents are resumed; they double with each time in a row.",
    ),
    Plain(
        f"{PREFIX}SHUTDOWN_TIMEOUT",
        "25",
        "a number at least 0 and at most 86400",
        "Seconds from the signal to the end: less than Gunicorn's `graceful_timeout` and than the "
        "grace period of Kubernetes, which are 30.",
    ),
    Plain(
        f"{PREFIX}SHUTDOWN_CANCEL_GRACE",
        "2",
        "a number at least 0 and at most 86400",
        "Of these, seconds for what is cancelled to end.",
    ),
    Plain(
        f"{PREFIX}SHUTDOWN_CLOSE_TIMEOUT",
        "5",
        "a number at least 0 and at most 86400",
        "Of these, seconds for clients to be closed and storages to be written.",
    ),
    Plain(
        f"{PREFIX}SHUTDOWN_JOURNAL",
        "none",
        "the path of a file",
        "Where work that did not end in time is written down; none writes nothing.",
    ),
    Plain(
        f"{PREFIX}STATUS",
        "false",
        "true or false",
        "Whether `lightrag-resilience serve` has the status page, at `/resilience`. It belongs "
        "behind the authentication of your ingress: it shows the names of dependencies.",
    ),
    Plain(
        f"{PREFIX}STATUS_TOKEN",
        "none",
        "16 to 256 ASCII characters without spaces",
        "What the status page asks of who opens, closes or isolates a breaker there; without it "
        "nobody can.",
    ),
    Plain(
        f"{PREFIX}STATUS_HOSTS",
        "none",
        "host names with commas between, such as rag.example.com or *.example.com, or *",
        "Names under which the status page answers, beside addresses, names without a dot and "
        "those that end in .localhost, .local, .internal or .test. Under any other name it answers "
        "421, so that no web site can read it by a name of its own (DNS rebinding).",
    ),
    Plain(
        f"{PREFIX}METRICS",
        "false",
        "true or false",
        "Whether `lightrag-resilience serve` answers `/metrics`, for Prometheus.",
    ),
)


def section_of(name: str) -> str:
    """The part of a variable's name that stands for a dependency: ``LLM_OPENAI``."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper())


def variable(section: str, part: str, name: str) -> str:
    """The variable of one field: ``RESILIENCE_LLM__RETRY__ATTEMPTS``."""
    return f"{PREFIX}{section}__{part}__{name}".upper()


def is_of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes or Docker sets it, in each container, for a service called alike.

    A service ``resilience-redis`` is ``RESILIENCE_REDIS_SERVICE_HOST`` and further ones.
    """
    return any(
        re.fullmatch(rf"{PREFIX}(?:\w+_)?(?:{end})", name) and re.fullmatch(what, value)
        for end, what in _OF_A_SERVICE
    )


def is_misspelt(section: str) -> bool:
    """Whether a dependency's name begins with what is nearly, and not quite, a family's."""
    word = section.partition("_")[0]
    return word not in _KNOWN and nearly(word, _KNOWN) is not None


def is_token(text: str) -> bool:
    """Whether a header can carry it, and nobody guesses it."""
    return re.fullmatch("[!-~]{16,256}", text) is not None


def nearest(unknown: str) -> str | None:
    """The variable that was probably meant."""
    sections = {*_KNOWN, *_sections_in(unknown)}
    names = [plain.name for plain in PLAIN]
    for part, policy in PARTS.items():
        names += (variable(s, part, entry.name) for s in sections for entry in fields(policy))
    by_letters = {_letters(name): name for name in sorted(names)}
    # A slip of a letter is likeliest, then a field that exists under another part.
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
    """A name without what all share, and without the likeliest slip: one underscore for two."""
    return name.removeprefix(PREFIX).replace("__", "_")


def _sections_in(unknown: str) -> Iterator[str]:
    """What may be the dependency in an unknown name."""
    rest = unknown.removeprefix(PREFIX)
    section, double, _ = rest.partition("__")
    guesses = [section] if double else []
    guesses += (rest.partition(f"_{part.upper()}_")[0].rstrip("_") for part in PARTS)
    return (guess for guess in guesses if guess and guess != rest and not is_misspelt(guess))


# ---------------------------------------------------------------------- the page


def describe_variables() -> str:
    """All variables as a Markdown page, from the policies' types and docstrings."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    yield "# Variables"
    yield ""
    yield "<!-- Written by `make docs` from the code. -->"
    yield ""
    yield "`RESILIENCE_<DEPENDENCY>__<PART>__<FIELD>`, with two underscores between. The dependency"
    yield "is the guard's name in capitals, with one underscore for whatever is no letter or digit:"
    yield "`llm.openai` is `LLM_OPENAI`. The more exact name wins: `LLM_OPENAI` over `LLM` over"
    yield "`DEFAULT`, and any of them over what the code says. `none` turns a field off where that"
    yield "is allowed; an empty variable is as good as none at all. Durations are seconds."
    yield ""
    yield "Everything wrong is reported at once, by `lightrag-resilience doctor` or when the first"
    yield "guard is made."
    yield ""
    yield "| variable | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for plain in PLAIN:
        yield f"| `{plain.name}` | {plain.default} | {plain.allowed} | {plain.meaning} |"
    for part, policy in PARTS.items():
        yield from _part(part, policy)
    yield ""


def _part(part: str, policy: Any) -> Iterator[str]:
    yield ""
    yield f"## `…__{part.upper()}__…`"
    yield ""
    yield " ".join(_paragraphs(policy))
    yield ""
    yield "| field | default | allowed | meaning |"
    yield "|---|---|---|---|"
    meanings, hints = _meanings(policy), field_hints(policy)
    for entry in fields(policy):
        default = _default(part, entry.name, entry.default)
        yield (
            f"| `{entry.name.upper()}` | {default} | {describe(hints[entry.name])} "
            f"| {meanings[entry.name]} |"
        )


def _default(part: str, name: str, default: Any) -> str:
    """The default, and where families differ from it, theirs."""
    assert default is not MISSING  # noqa: S101 - every field of a policy has a default
    shown = [_shown(default)]
    for family in FAMILIES:
        own = getattr(getattr(Policy.for_name(family), part), name)
        if own != default:
            shown.append(f"{family} {_shown(own)}")
    return ", ".join(shown)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _paragraphs(policy: Any) -> list[str]:
    return (inspect.getdoc(policy) or "").partition("\nAttributes:")[0].split()


def _meanings(policy: Any) -> dict[str, str]:
    """What each field means, out of the docstring's list of attributes."""
    listed = (inspect.getdoc(policy) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    return {name: re.sub(r"``", "`", " ".join(text.split())) for name, text in found}


if __name__ == "__main__":
    sys.stdout.write(describe_variables())
