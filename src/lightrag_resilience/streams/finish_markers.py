"""Whether a stream of a model came to its end, was cut off before it, or was given up.

Chunks are recognised by their structure, as SDKs' objects or as dicts; no SDK is imported. What is
not recognised, text above all, is never judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

from lightrag_resilience.errors import TruncatedStreamError

__all__ = ["FinishMarker", "finish_marker_for", "is_of_model", "why_not_whole"]

_Read = Callable[[Any, str, Any], Any]
_UNTOLD: Any = object()
_STREAMS_OF_SDKS = frozenset({"openai", "openai._streaming", "anthropic", "anthropic._streaming"})

_NOTHING = frozenset(
    {
        *("null", "none", "nil", "undefined"),  # DashScope, KoboldCpp, and gateways in any language
        *("not_finished", "finish_reason_unspecified", "unspecified"),  # watsonx, Gemini
    }
)
"""Words for no finish reason, which some servers give with each chunk until the end."""
_GAVE_UP = frozenset(
    {
        *("abort", "aborted", "failed"),  # vLLM, SGLang, LMDeploy
        *("timeout", "timed_out", "time_limit"),  # TensorRT-LLM, Cohere, watsonx
        *("cancel", "cancelled", "canceled"),  # TensorRT-LLM, Dynamo, watsonx
        *("insufficient_system_resource", "overloaded", "service_unavailable"),  # DeepSeek
    }
)
"""Finish reasons by which a server says that it stopped before the model did; so do all that end
like "error" (vLLM, Mistral, Cohere, OpenRouter) and "network_error" (Zhipu)."""
_WORD = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class FinishMarker(Protocol):
    """The finish marker of one stream."""

    def record(self, item: Any) -> None:
        """The next item came."""

    @property
    def is_seen(self) -> bool:
        """Whether the model has said all."""
        ...

    @property
    def is_missing(self) -> bool:
        """Whether something began and is not finished."""
        ...

    @property
    def failure(self) -> str | None:
        """The word by which the server gave up; empty where it has none, None if it did not."""
        ...


def finish_marker_for(first: Any) -> FinishMarker | None:
    """What to look for in a stream with this first item; None where no structure is known."""
    try:
        if (finish := _recognised(first)) is not None:
            finish.record(first)
    except Exception:  # noqa: BLE001 - an item's odd attributes must not break its stream
        return None
    return finish


def why_not_whole(dependency: str, finish: FinishMarker) -> TruncatedStreamError | None:
    """What a stream that has ended, or is closed at its end, failed with; None if it is whole."""
    if (code := finish.failure) is not None:
        reason = f"by its server, which gave up: {code}" if code else "by its server"
        return TruncatedStreamError(dependency, None, reason, code)
    if finish.is_missing:
        return TruncatedStreamError(dependency, None, "before its finish marker")
    return None


def is_of_model(source: Any) -> bool:
    """Whether a stream is one of openai's or anthropic's SDK, never empty if whole."""
    cls = type(source)
    return cls.__name__ == "AsyncStream" and cls.__module__ in _STREAMS_OF_SDKS


def _recognised(first: Any) -> FinishMarker | None:
    read: _Read = dict.get if isinstance(first, dict) else getattr
    for name in ("choices", "candidates"):
        if isinstance(read(first, name, None), list):
            return _Choices() if (read, name) == (getattr, "choices") else _EachFinishes(read, name)
    if isinstance(kind := read(first, "type", None), str):
        return _events(read, kind, first)
    parts = (read(first, "message", None), read(first, "response", None))
    if isinstance(read(first, "done", None), bool) and parts != (None, None):
        return _Done(read)
    return None


def _events(read: _Read, kind: str, first: Any) -> FinishMarker | None:
    if kind == "message_start":
        return None if read(first, "message", None) is None else _Events(read, is_missing=True)
    if kind in _BEGINNINGS:
        return _Events(read, is_missing=True)
    # A response that is read on, or of which a function lets a part through: no end is owed.
    is_numbered = isinstance(read(first, "sequence_number", None), int)
    is_known = is_numbered and (kind == "error" or kind.startswith("response."))
    return _Events(read, is_missing=False) if is_known else None


# ---------------------------------------------------------------------- a reason for each part


class _EachFinishes:
    """The choices of OpenAI's chunks, the candidates of Gemini's: each has a reason at its end.

    The reason need not come in the last chunk: usage and late filter results follow it.
    """

    __slots__ = ("_begun", "_finished", "_name", "_read", "failure")

    def __init__(self, read: _Read, name: str) -> None:
        self._read = read
        self._name = name
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        self.failure: str | None = None

    def record(self, item: Any) -> None:
        read = self._read
        for part in read(item, self._name, None) or self._without_parts(item):
            reason = read(part, "finish_reason", _UNTOLD)
            if reason is not _UNTOLD:
                # Gemini leaves an index of 0 out.
                self._told(reason, read(part, "index", 0) or 0, part, item)

    def _without_parts(self, item: Any) -> tuple[Any, ...]:
        """A chunk of another kind: usage, a filter's results, or an error."""
        if (error := _within(item, "error")) is not None:
            self.failure = _code_of(error)
        return ()

    def _told(self, reason: Any, index: int, part: Any, item: Any) -> None:
        word = _word_of(reason)
        if not reason or word in _NOTHING:
            self._begun.add(index)
            return
        self._finished.add(index)
        if _means_given_up(word):
            error = _within(part, "error") or _within(item, "error")
            self.failure = _code_of(error) or _printable(word)

    @property
    def is_seen(self) -> bool:
        return bool(self._finished) and not self.is_missing

    @property
    def is_missing(self) -> bool:
        return not self._begun <= self._finished


class _Choices(_EachFinishes):
    """The choices of objects: attributes that stand in the code are found in half the time."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(getattr, "choices")

    def record(self, item: Any) -> None:
        try:
            for choice in item.choices or self._without_parts(item):
                if choice.finish_reason:
                    self._told(choice.finish_reason, choice.index or 0, choice, item)
                else:  # some providers give "" until the end
                    self._begun.add(choice.index or 0)
        except AttributeError:  # one without a reason, or an index
            super().record(item)


# ---------------------------------------------------------------------- an item at the end

_BEGINNINGS = frozenset(
    {"response.created", "response.queued", "response.in_progress", "message-start"}
)
"""First events of OpenAI's Responses, and of Cohere; Anthropic's is known by its message."""
_WHOLE = frozenset(
    {
        *("response.completed", "response.done"),
        "response.incomplete",  # at its limit, as with the finish reason "length"
        *("message_stop", "message-end"),
    }
)
_FAILED = frozenset({"response.failed", "response.cancelled", "error"})
_TELLING = _WHOLE | _FAILED | {"message_delta"}  # which has the reason of the end that follows


class _Events:
    """The events of Anthropic, OpenAI's Responses and Cohere: the type of one says that it ends."""

    __slots__ = ("_read", "failure", "is_missing", "is_seen")

    def __init__(self, read: _Read, *, is_missing: bool) -> None:
        self._read = read
        self.is_missing = is_missing
        self.is_seen = False
        self.failure: str | None = None

    def record(self, item: Any) -> None:
        if (kind := self._read(item, "type", None)) in _TELLING:
            self._told(kind, item)

    def _told(self, kind: str, item: Any) -> None:
        response, delta = _within(item, "response"), _within(item, "delta")
        reason = _within(delta, "stop_reason") or _within(delta, "finish_reason")
        word = _word_of(_within(response, "status") or reason)
        if kind in _FAILED or _means_given_up(word):
            code = _code_of(_within(response, "error") or _within(item, "error"))
            self.failure = code or _printable(_within(item, "code")) or _printable(word) or kind
        elif kind in _WHOLE:
            self.is_seen, self.is_missing = True, False
            if response is not None:
                self.failure = None  # what went wrong before did not end it


class _Done:
    """Ollama's `done`: a mark on the last item."""

    __slots__ = ("_read", "is_seen")

    failure = None

    def __init__(self, read: _Read) -> None:
        self._read = read
        self.is_seen = False

    def record(self, item: Any) -> None:
        if self._read(item, "done", None) is True:
            self.is_seen = True

    @property
    def is_missing(self) -> bool:
        return not self.is_seen


# ---------------------------------------------------------------------- words


def _within(thing: Any, name: str) -> Any:
    """A part, of an object or a dict: what an SDK does not know, its objects hold as dicts."""
    return thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)


def _word_of(reason: Any) -> str:
    """A reason in lower case; Gemini's are members of an enumeration."""
    word = getattr(reason, "value", reason)
    return word.lower().replace("-", "_") if isinstance(word, str) else ""


def _means_given_up(word: str) -> bool:
    return word in _GAVE_UP or word.endswith("error") or word.startswith("error:")


def _code_of(error: Any) -> str:
    """The code of an error, its type where it has none; empty where it has neither."""
    found = (_printable(_within(error, name)) for name in ("code", "type"))
    return next((word for word in found if word not in {"", "error"}), "")


def _printable(word: Any) -> str:
    """A word from outside, as far as it may stand in an error: never a text."""
    match = _WORD.fullmatch(str(word)) if isinstance(word, str | int) else None
    return match[0].lower() if match else ""
