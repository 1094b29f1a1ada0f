"""Errors that refuse a request for its size: the same request would be refused again."""

from __future__ import annotations

import re

from .http_errors import is_of_size, status_of, words_of

__all__ = ["is_too_large"]

_REFUSED = frozenset({400, 422})
_CODES = frozenset(
    {"context_length_exceeded", "request_too_large", "max_tokens_per_request", "too_long"}
    | {"array_above_max_length", "string_above_max_length"}
)
# Only where the status says that the request is wrong, and no code says why.
_WHAT = r"(?:tokens?|length|size|inputs?|documents|texts|items|elements|characters|batch|requests)"
_BOUND = r"(?:exceed|above|(?:larg|long|great)er than|(?:less|fewer|more) than|at most|up to|max)"
_WORDS = re.compile(
    rf"too (?:large|long|big|many {_WHAT})|{_BOUND}\w*\b.{{0,60}}\b{_WHAT}|"
    rf"\b{_WHAT}\b.{{0,60}}\b{_BOUND}|"
    r"batch size|context (?:length|window|size)|max_?(?:imum_?)?(?:length|tokens)|"
    r"range of input length|超过|超出|过长|最大",
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
