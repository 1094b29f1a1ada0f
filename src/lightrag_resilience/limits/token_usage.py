"""Tokens of a call: an estimate before it, the usage that its answer reports after it.

All is read by structure: from answers of the openai, anthropic, google-genai and ollama clients,
or from plain dicts of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["estimate_tokens", "text_tokens", "used_tokens"]

_CHARACTERS_PER_TOKEN = 4  # OpenAI's rule of thumb
_MOST_LEVELS = 4  # of lists and dicts, as in messages
_MOST_TEXTS = 1000  # of one list
_BOUND_NAMES = ("max_completion_tokens", "max_tokens", "max_output_tokens", "num_predict")
_USAGE_FIELDS = (
    ("total_tokens",),
    ("total_token_count",),
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "output_tokens"),
    ("prompt_eval_count", "eval_count"),
)


def text_tokens(text: str) -> int:
    """An estimate of a text's tokens."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def estimate_tokens(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int | None]:
    """An estimate of the tokens a call sends, and the bound that it sets on its answer, or None."""
    sent = _tokens_in(args, 0) + _tokens_in(kwargs.values(), 0)
    bounds: Iterable[Any] = (kwargs.get(name) for name in _BOUND_NAMES)
    bound = next((value for value in bounds if _is_count(value) and value), None)
    return sent, bound


def _tokens_in(values: Iterable[Any], depth: int) -> int:
    """An estimate of the tokens of all texts among the values."""
    total = 0
    for number, value in enumerate(values):
        if number >= _MOST_TEXTS:
            break
        if isinstance(value, str):
            total += text_tokens(value)
        elif depth < _MOST_LEVELS and isinstance(value, (list, tuple)):
            total += _tokens_in(value, depth + 1)
        elif depth < _MOST_LEVELS and isinstance(value, dict):
            total += _tokens_in(value.values(), depth + 1)
    return total


def used_tokens(answer: Any) -> int | None:
    """The tokens that an answer reports as used; None if it reports none."""
    try:
        holders = [_get(answer, "usage"), _get(answer, "usage_metadata"), answer]
        for holder in holders:
            if holder is None or isinstance(holder, (str, bytes)):
                continue
            for names in _USAGE_FIELDS:
                counts = [_get(holder, name) for name in names]
                if all(_is_count(count) for count in counts):
                    return int(sum(counts))
    except Exception:  # noqa: BLE001 - an odd answer must not fail the call
        return None
    return None


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
