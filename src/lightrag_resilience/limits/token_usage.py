"""Tokens of a call: an estimate before it, the usage that its answer reports after it.

All is read by structure: from answers of the openai, anthropic, google-genai and ollama clients,
or from plain dicts of the same shape.
"""

from __future__ import annotations

import math
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

__all__ = [
    "WITHOUT_USAGE",
    "CountTokens",
    "answer_tokens",
    "estimate_tokens",
    "text_tokens",
    "token_weight",
    "used_tokens",
    "with_tokenizer",
]

CountTokens = Callable[[str], int]
"""Estimates the tokens of a text."""

_MOST_USED = 10_000_000  # tokens of one call; the largest contexts of models
_MOST_LEVELS = 4  # of lists and dicts, as in messages
_MOST_TEXTS = 1000  # of one list
_BOUND_NAMES = ("max_completion_tokens", "max_tokens", "max_output_tokens", "num_predict")
_USAGE_FIELDS = (
    ("total_tokens",),
    ("total_token_count",),
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "output_tokens"),
    ("prompt_eval_count", "eval_count"),
    ("prompt_eval_count",),  # of embeddings, which have no answer to count
)
_HOLDERS = frozenset({"usage", "usage_metadata", *(it for names in _USAGE_FIELDS for it in names)})
WITHOUT_USAGE = frozenset({type(None), str, bytes, bool, int, float, list, tuple})
"""Types of answers that never say how many tokens were used."""

# Tokens a character: a little more than o200k_base, cl100k_base (both OpenAI's) and Qwen make of
# letters and spaces (0.19-0.24 with their signs) and of code and JSON (0.23-0.43), since what is
# too much is given back. Of Cyrillic they make 0.29-0.46, of Greek and Arabic 0.35-0.92, of Chinese
# 0.61-1.5, of Japanese 0.76-1.1, of Korean 0.66-1.07.
_LETTER, _SIGN, _TWO_BYTES, _THREE_BYTES = 0.22, 0.66, 0.45, 1.0
_LETTERS = (string.ascii_letters + string.whitespace).encode()

_READ_WHOLE = 262_144  # characters; 2 ms by script
_ENCODED_WHOLE = 4_096  # characters; 2 ms by tiktoken
_SLICE = 128  # characters
_LONGEST_ENCODING = 0.005  # seconds for which the event loop may be held
_MOST_SLOW = 3


def token_weight(text: str) -> float:
    """Tokens of a text, by the scripts of its characters.

    A character's bytes in UTF-8 show its script: one for Latin and code, two for Cyrillic,
    Greek and Arabic, three for Chinese, Japanese, Korean and the scripts of India.
    """
    size = len(text)
    plain = text.encode("ascii", "ignore")
    signs = len(plain.translate(None, _LETTERS))
    tokens = (len(plain) - signs) * _LETTER + signs * _SIGN
    if (rest := size - len(plain)) == 0:
        return tokens
    extra = len(text.encode("utf-8", "surrogatepass")) - size  # 1 for two bytes, 2 for three
    return tokens + (2 * rest - extra) * _TWO_BYTES + (extra - rest) * _THREE_BYTES


def text_tokens(text: str) -> int:
    """An estimate of a text's tokens, by its scripts."""
    if len(text) <= _READ_WHOLE:
        return math.ceil(token_weight(text))
    return _by_sample(text, _READ_WHOLE, token_weight)


def with_tokenizer(encode: Callable[[str], Sequence[int]] | None) -> CountTokens:
    """An estimate by a tokenizer, of long texts by slices of them.

    A tokenizer that fails, or holds the event loop for more than 5 ms again and again, is replaced
    by the estimate by scripts.
    """
    if encode is None:
        return text_tokens
    slow = 0

    def count(text: str) -> int:
        nonlocal slow
        if slow >= _MOST_SLOW:
            return text_tokens(text)
        began = time.thread_time()
        try:
            return _by_sample(text, _ENCODED_WHOLE, lambda part: len(encode(part)))
        except Exception:  # noqa: BLE001 - an estimate must not fail the call
            slow = _MOST_SLOW
            return text_tokens(text)
        finally:
            slow += time.thread_time() - began > _LONGEST_ENCODING

    return count


def _by_sample(text: str, most: int, weight: Callable[[str], float]) -> int:
    """Tokens of a text of which at most so many characters are read, evenly spread."""
    if len(text) <= most:
        return math.ceil(weight(text))
    step = len(text) * _SLICE // most
    sample = "".join(text[at : at + _SLICE] for at in range(0, len(text), step))
    return math.ceil(weight(sample) * len(text) / len(sample))


def estimate_tokens(
    args: Sequence[Any], kwargs: Mapping[str, Any], count: CountTokens = text_tokens
) -> tuple[int, int | None]:
    """An estimate of the tokens a call sends, and the bound that it sets on its answer, or None."""
    # All texts at once: a sample is then one for the call, not one for each text.
    sent = count("\n".join((*_texts_in(args, 0), *_texts_in(kwargs.values(), 0))))
    bounds: Iterable[Any] = (kwargs.get(name) for name in _BOUND_NAMES)
    bound = next((value for value in bounds if _is_count(value) and value), None)
    return sent, bound


def _texts_in(values: Iterable[Any], depth: int) -> Iterator[str]:
    """All texts among the values."""
    for value in islice(values, _MOST_TEXTS):
        if isinstance(value, str):
            yield value
        elif depth < _MOST_LEVELS and isinstance(value, (list, tuple)):
            yield from _texts_in(value, depth + 1)
        elif depth < _MOST_LEVELS and isinstance(value, dict):
            yield from _texts_in(value.values(), depth + 1)


def used_tokens(answer: Any) -> int | None:
    """The tokens that an answer, or the last chunk of one, reports as used; None if none.

    A proxy that does not know them reports 0, or what no model can have read.
    """
    if answer.__class__ in WITHOUT_USAGE or (
        isinstance(answer, dict) and _HOLDERS.isdisjoint(answer)
    ):
        return None
    try:
        for holder in (_get(answer, "usage"), _get(answer, "usage_metadata"), answer):
            for names in () if holder is None else _USAGE_FIELDS:
                counts = [_get(holder, name) for name in names]
                if all(map(_is_count, counts)) and 0 < (total := sum(counts)) <= _MOST_USED:
                    return int(total)
    except Exception:  # noqa: BLE001 - an odd answer must not fail the call
        return None
    return None


class _Call(Protocol):
    @property
    def reported_tokens(self) -> int | None: ...
    @property
    def sent_tokens(self) -> int: ...


def answer_tokens(call: _Call, answer: Any, otherwise: int = 0) -> int:
    """The tokens of a call that succeeded: as reported, or by the length of its texts.

    Args:
        call: What was sent, and what the provider says of it.
        answer: Its answer, or the last chunk of one.
        otherwise: What is returned where nothing is known of the answer.
    """
    if (reported := call.reported_tokens) is not None:
        return reported
    if answer.__class__ is not str and (used := used_tokens(answer)) is not None:
        return used
    if not (sent := call.sent_tokens) and not otherwise:
        return 0
    if isinstance(answer, str):
        return sent + text_tokens(answer)
    # Vectors and scores are not paid for.
    return sent if isinstance(answer, list) or hasattr(answer, "shape") else otherwise


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
