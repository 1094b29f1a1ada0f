"""What a call costs in tokens: an estimate before it, and what it has used after it.

Everything is read by structure: from the answers of the openai, anthropic, google-genai and ollama
clients, or from plain dicts of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["estimate_tokens", "text_tokens", "used_tokens"]

_CHARACTERS = 4  # of a token, by OpenAI's rule of thumb
_DEEPEST = 4  # lists in messages in arguments
_WIDEST = 1000  # texts
_BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "num_predict")
_SUMS = (
    ("total_tokens",),
    ("total_token_count",),
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "output_tokens"),
    ("prompt_eval_count", "eval_count"),
)


def text_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // _CHARACTERS)


def estimate_tokens(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int | None]:
    """About how many tokens a call asks with, and how many it lets the answer have, if it says."""
    asked = _tokens_in(args, 0) + _tokens_in(kwargs.values(), 0)
    bounds: Iterable[Any] = (kwargs.get(name) for name in _BOUNDS)
    bound = next((value for value in bounds if _is_count(value) and value), None)
    return asked, bound


def _tokens_in(values: Iterable[Any], depth: int) -> int:
    """Of all texts among the values."""
    total = 0
    for number, value in enumerate(values):
        if number >= _WIDEST:
            break
        if isinstance(value, str):
            total += text_tokens(value)
        elif depth < _DEEPEST and isinstance(value, (list, tuple)):
            total += _tokens_in(value, depth + 1)
        elif depth < _DEEPEST and isinstance(value, dict):
            total += _tokens_in(value.values(), depth + 1)
    return total


def used_tokens(answer: Any) -> int | None:
    """How many tokens an answer says that it cost; None where it says nothing."""
    try:
        holders = [_get(answer, "usage"), _get(answer, "usage_metadata"), answer]
        for holder in holders:
            if holder is None or isinstance(holder, (str, bytes)):
                continue
            for names in _SUMS:
                counts = [_get(holder, name) for name in names]
                if all(_is_count(count) for count in counts):
                    return int(sum(counts))
    except Exception:  # noqa: BLE001 - an odd answer is the caller's, and none of our business
        return None
    return None


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
