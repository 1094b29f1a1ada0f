"""Names and prose of the package and its docs: the field's terms, and no words to decode."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = {".css", ".html", ".js", ".json", ".lua", ".md", ".py", ".svg"}
_GAP = r"[\s#*/_-]+"  # between two words, also in a comment of two lines, or in a name
_WORDS = (
    "heed(s|ed|ing)?",
    "tell(s|ing)?|told|untold",  # publish, report, send
    "hear(s|d|ing)?|unheard",  # subscribe, receive
    "who|whom|whoever",  # name the subject: the caller, the worker, the operator
    "nobody|somebody|everybody",
    "steer(s|ed|ing)?",  # force a state
    "elders?",  # previous
    "away|aside",  # unavailable, suspended
    "lest|whence|thereof|naught|lately",
)
_PHRASES = (
    ("tak(e|es|en|ing)|took", "up(?! to)"),  # resume
    ("stand|stands|stood", "still"),
    ("in", "a hurry"),
    ("none", "of ours"),  # malformed
    ("in|join(s|ed)? the|leaves? the", "line"),  # queue
    ("lined?", "up"),
    ("free|limited|spare|limits and|for a|for one", "places?"),  # permit
    ("places?", "taken|held|granted|released"),
)
_ALL = "|".join((*_WORDS, *(f"({first}){_GAP}({second})" for first, second in _PHRASES)))
FORBIDDEN = re.compile(f"(?<![a-z])({_ALL})(?![a-z])", re.IGNORECASE)
NAMES_OF_OTHERS = (
    '"nobody"',  # a user of the operating system, by which PostgreSQL runs
    "`nobody`",
    '"Who"',  # a word of questions to the simulated model
    "Who founded",
)


def found_in(text: str) -> list[str]:
    """The forbidden words of a text, each with the number of its line."""
    for name in NAMES_OF_OTHERS:
        text = text.replace(name, "")
    text = re.sub("(?<=[a-z])(?=[A-Z])", "_", text)  # CamelCase
    return [f"{text.count(chr(10), 0, m.start()) + 1}: {m[0]}" for m in FORBIDDEN.finditer(text)]


def test_the_package_and_its_docs_use_no_forbidden_word() -> None:
    files = [*ROOT.glob("src/**/*"), *ROOT.glob("docs/**/*"), ROOT / "README.md"]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in TEXTS}
    found = {str(path.relative_to(ROOT)): found_in(text) for path, text in texts.items()}
    assert {path: words for path, words in found.items() if words} == {}


@pytest.mark.parametrize(
    "text",
    [
        "def _tell_start() -> None:",
        "class TellAll:",
        "FREE_PLACES",
        "it is taken\n    # up again",
        "a worker who asks",
        "Who asks does not hold it.",
        "wait_in_line",
        "limits and places",
        "It stands still.",
    ],
)
def test_a_forbidden_word_is_found_in_names_and_prose(text: str) -> None:
    assert found_in(text)


def test_ordinary_uses_of_the_same_words_are_allowed() -> None:
    text = "whole, intelligent, in place of it, in one place, a line of the log, takes up to four"
    assert found_in(text) == []
