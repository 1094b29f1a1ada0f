"""The sentence that a server's user reads about a failure; operators get the cause elsewhere."""

from __future__ import annotations

from lightrag_resilience.errors import (
    AttemptTimeoutError,
    BulkheadFullError,
    CallRejected,
    CallShedError,
    DeadlineExceededError,
    RateLimitedError,
    ShuttingDownError,
    TruncatedStreamError,
)
from lightrag_resilience.failures.classifier import FailureKind, classify, root_cause
from lightrag_resilience.integrations.asgi.request_task import STOPS
from lightrag_resilience.text import as_words

__all__ = ["sentence_for"]

_NAMES = {
    "llm": "the language model",
    "embedding": "the embedding model",
    "rerank": "the reranker",
    "storage": "the database",
    "parser": "the service that parses documents",
}
_UNNAMED = "a service that is needed for this"
_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (ShuttingDownError, STOPS),
    (BulkheadFullError, "Too many requests wait for {what}."),
    (CallShedError, "{what} fails most of its calls at the moment."),
    (RateLimitedError, "{what} takes no more requests at the moment."),
    (AttemptTimeoutError, "{what} took too long to answer."),
    (DeadlineExceededError, "{what} took too long to answer."),
    (TruncatedStreamError, "The answer was cut off by {what}."),
)
_THROTTLED = dict(_SENTENCES)[RateLimitedError]
_LATE = dict(_SENTENCES)[AttemptTimeoutError]
_CUT_OFF = dict(_SENTENCES)[TruncatedStreamError]
_UNAVAILABLE = "{what} is not available."
_FATAL = "{what} refused the request. Asking again does not help: inform your administrator."


def sentence_for(
    dependency: str, error: Exception, wait: int | None, *, is_cut_off: bool = False
) -> str:
    """What happened, to which service, and when to try again.

    Args:
        dependency: The name of the guard.
        error: The error of its call.
        wait: Whole seconds, as in ``Retry-After``; None if waiting does not help.
        is_cut_off: Whether a part of the answer was sent.
    """
    what = _NAMES.get(dependency.partition(".")[0], _UNNAMED)
    sentence = _FATAL if wait is None else _sentence(error)
    if sentence == _UNAVAILABLE and is_cut_off:
        sentence = _CUT_OFF
    text = sentence.format(what=what)
    advice = "" if wait is None else f" Try again in {as_words(wait)}."
    return f"{text[0].upper()}{text[1:]}{advice}"


def _sentence(error: Exception) -> str:
    for kind, sentence in _SENTENCES:
        if isinstance(error, kind):
            return sentence
    if isinstance(error, CallRejected):
        return _UNAVAILABLE
    if classify(error).kind is FailureKind.THROTTLED:
        return _THROTTLED
    root = root_cause(error)
    is_late = isinstance(root, TimeoutError) or "timeout" in type(root).__name__.lower()
    return _LATE if is_late else _UNAVAILABLE
