"""Errors that refuse a request for its size: the same request would be refused again."""

from __future__ import annotations

import re

from .http_errors import is_of_size, status_of, words_of

__all__ = ["is_too_large"]

_REFUSED = frozenset({400, 422})
_CODES = frozenset(
    {"context_length_exceeded", "request_too_large", "max_tokens_per_request"}
    | {"array_above_max_length", "string_above_max_length"}
)
# Only where the status says that the request is wrong, and no code says why.
_WORDS = re.compile(
    r"too (?:large|long|many (?:tokens|texts|inputs|documents|items))|batch size|"
    r"(?:exceed|above|larger than|longer than|at most|up to)\w* .{0,60}"
    r"(?:tokens|length|inputs|documents|texts|batch|limit|maximum)",
    re.IGNORECASE,
)
_LONGEST = 2000  # characters of a message


def is_too_large(exc: BaseException) -> bool:
    """Whether a request, or a batch, was refused for its size, so that a part of it may pass."""
    status = status_of(exc)
    if status == 413 or is_of_size(exc):  # noqa: PLR2004 - HTTP
        return True
    if status not in _REFUSED:
        return False
    return not _CODES.isdisjoint(words_of(exc)) or bool(_WORDS.search(str(exc)[:_LONGEST]))
