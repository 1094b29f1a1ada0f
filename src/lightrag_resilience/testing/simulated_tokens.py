"""How a simulated model counts tokens: by the rules of a byte-pair encoder, without its table.

It splits a text as the tokenizers of GPT-4 do, then cuts words into pieces of the length that is
usual for their script.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["count_message_tokens", "count_tokens"]

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


def count_tokens(text: str) -> int:
    """The tokens of a text."""
    return sum(1 for _ in _PIECE.finditer(text))


def count_message_tokens(messages: Sequence[dict[str, Any]]) -> int:
    """The tokens of a conversation."""
    texts = [message.get("content") or "" for message in messages]
    return sum(
        _OF_MESSAGE + count_tokens(text if isinstance(text, str) else str(text)) for text in texts
    )
