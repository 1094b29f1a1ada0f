"""What a simulated model answers: plain rules in place of a model, so that answers can be checked.

It does what LightRAG asks for: extracts entities and relations, finds keywords, merges
descriptions, and answers questions with sentences of the given context. It counts tokens by the
rules of a byte-pair encoder, without its table.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import dropwhile, pairwise
from typing import Any

__all__ = ["complete", "count_message_tokens", "count_tokens", "embed", "relevance"]

_NAME = re.compile(r"[A-Z][a-z'-]+(?: [A-Z][a-z'-]+)*")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")
_WORD = re.compile(r"\w+")
_LITTLE_WORDS = frozenset(
    {"A", "An", "And", "As", "At", "Because", "But", "By", "For", "From", "He", "Her", "His", "How",
     "If", "In", "Into", "Is", "It", "Its", "Of", "On", "Or", "She", "So", "That", "The", "Their",
     "Then", "There", "They", "This", "To", "Under", "We", "What", "When", "Where", "Which", "Who",
     "Why", "With"}
)  # fmt: skip
# A text is split as by the tokenizers of GPT-4, and words into pieces of the length that is usual
# for their script.
_PIECE = re.compile(
    r" ?[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\u3000-\u303f]"
    r"| ?[A-Za-z]{1,9}"
    r"| ?[^\W\d_A-Za-z\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]{1,3}"  # Cyrillic, Greek
    r"|\d{1,3}"
    r"| ?[^\w\s]{1,3}"
    r"|\s+"
    r"|.",
    re.DOTALL,
)
_OF_MESSAGE = 3  # its role and its marks
_JOINT, _END = "<|#|>", "<|COMPLETE|>"
_NOTHING = "I do not know: the context says nothing about it."
_QUOTED = 3  # sentences of the context in an answer


def complete(messages: Sequence[dict[str, Any]], *, as_json: bool = False) -> str:
    """The answer to a conversation, by what its prompts ask for."""
    asked = _text(messages[-1]) if messages else ""
    system = "\n".join(_text(message) for message in messages if message.get("role") == "system")
    if "based on the last extraction task" in asked.lower():
        return json.dumps({"entities": [], "relationships": []}) if as_json else _END
    if "---Input Text---\n" in asked:
        return _extract(_between(asked, "---Input Text---\n", "---Output---"), as_json=as_json)
    if "keyword extractor" in asked:
        return _keywords(_between(asked, "User Query:", "---Output---"))
    if "synthesize a list of descriptions" in asked:
        return _summary(_between(asked, "Description List:", "---Output---"))
    if "---Context---" in system:
        return _answer(asked, system.rpartition("---Context---")[2])
    return f"A simulated answer of a model that was asked {len(asked)} characters."


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content)


def _between(text: str, start: str, end: str) -> str:
    inner = text.rpartition(start)[2].partition(end)[0].strip()
    return inner.removeprefix("```").removesuffix("```").strip()


# ---------------------------------------------------------------------- extraction


def _sentences(text: str) -> Iterator[str]:
    return (found.group().strip() for found in _SENTENCE.finditer(text) if found.group().strip())


def _names(sentence: str) -> list[str]:
    """The proper names in a sentence, in their order, each once."""
    names: dict[str, None] = {}
    for found in _NAME.finditer(sentence):
        capitals = found.group().split()
        words = list(dropwhile(_LITTLE_WORDS.__contains__, capitals))
        # A single capital at the beginning is how any sentence begins.
        is_beginning = found.start() == 0 and len(capitals) == 1
        if words and not (is_beginning and not _begins_with_name(sentence, words[0])):
            names[" ".join(words)] = None
    return list(names)


def _begins_with_name(sentence: str, word: str) -> bool:
    """Whether a sentence's first word is a name after all: only names are followed so."""
    return bool(re.match(rf"{re.escape(word)}(?:'s| is| was| founded| built) ", sentence))


def _extract(text: str, *, as_json: bool) -> str:
    entities: dict[str, str] = {}
    relations: dict[tuple[str, str], str] = {}
    for sentence in _sentences(text):
        names = _names(sentence)
        for name in names:
            entities.setdefault(name, sentence)
        for pair in pairwise(names):
            relations.setdefault(pair, sentence)
    return _as_json(entities, relations) if as_json else _as_rows(entities, relations)


def _as_rows(entities: dict[str, str], relations: dict[tuple[str, str], str]) -> str:
    rows = [_JOINT.join(("entity", name, "Concept", about)) for name, about in entities.items()]
    rows += [
        _JOINT.join(("relation", source, target, "mentioned together", about))
        for (source, target), about in relations.items()
    ]
    return "\n".join((*rows, _END))


def _as_json(entities: dict[str, str], relations: dict[tuple[str, str], str]) -> str:
    return json.dumps(
        {
            "entities": [
                {"name": name, "type": "Concept", "description": about}
                for name, about in entities.items()
            ],
            "relationships": [
                {
                    "source": source,
                    "target": target,
                    "keywords": "mentioned together",
                    "description": about,
                }
                for (source, target), about in relations.items()
            ],
        }
    )


# ---------------------------------------------------------------------- questions and summaries


def _keywords(question: str) -> str:
    names = _names(question)
    known = {word for name in names for word in name.split()}
    themes = [w for w in _WORD.findall(question) if w not in known and len(w) > 3 and w.isalpha()]  # noqa: PLR2004
    return json.dumps({"high_level_keywords": themes, "low_level_keywords": names})


def _summary(listed: str) -> str:
    found = (record.get("Description", "") for record in _records(listed))
    return " ".join(dict.fromkeys(text for text in found if text)) or "No description."


def _answer(question: str, context: str) -> str:
    """The sentences of the context that share most words with the question."""
    wanted = {word for word in _words(question) if len(word) > 2}  # noqa: PLR2004
    scored: dict[str, int] = {}
    for record in _records(context):
        for sentence in _sentences(record.get("content") or record.get("description") or ""):
            scored[sentence] = len(wanted.intersection(_words(sentence)))
    best = sorted((s for s in scored if scored[s]), key=lambda s: -scored[s])[:_QUOTED]
    return " ".join(best) or _NOTHING


def _records(text: str) -> Iterator[dict[str, str]]:
    """The JSON objects that stand on lines of their own."""
    for line in text.splitlines():
        try:
            record = json.loads(line.strip().rstrip(","))
        except ValueError:
            continue
        if isinstance(record, dict):
            yield {key: value for key, value in record.items() if isinstance(value, str)}


# ---------------------------------------------------------------------- numbers


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def embed(text: str, dimensions: int) -> list[float]:
    """A unit vector: texts that share words are near each other."""
    vector = [0.0] * dimensions
    for word in _words(text) or [text]:
        digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        vector[(digest >> 1) % dimensions] += 1.0 if digest & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    if not length:
        vector[0] = length = 1.0
    return [value / length for value in vector]


def relevance(query: str, document: str) -> float:
    """From 0 to 1: which share of the query's words the document holds."""
    wanted = set(_words(query))
    return len(wanted.intersection(_words(document))) / len(wanted) if wanted else 0.0


def count_tokens(text: str) -> int:
    """The tokens of a text."""
    return sum(1 for _ in _PIECE.finditer(text))


def count_message_tokens(messages: Sequence[dict[str, Any]]) -> int:
    """The tokens of a conversation."""
    texts = [message.get("content") or "" for message in messages]
    return sum(
        _OF_MESSAGE + count_tokens(text if isinstance(text, str) else str(text)) for text in texts
    )
