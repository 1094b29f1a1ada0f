"""Whether a model's stream is complete, was truncated, or was given up by its server.

Chunks are recognised by their structure, as SDKs' objects or as dicts; no SDK is imported. Items
that are not recognised, such as plain text, are never judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Protocol

from lightrag_resilience.errors import TruncatedStreamError
from lightrag_resilience.limits.token_usage import token_weight

__all__ = ["FinishMarker", "TextLength", "finish_marker_for", "incomplete_error", "is_of_model"]

_Read = Callable[[Any, str, Any], Any]
_ABSENT: Any = object()
_STREAMS_OF_SDKS = frozenset({"openai", "openai._streaming", "anthropic", "anthropic._streaming"})

_NOTHING = frozenset(
    {
        *("null", "none", "nil", "undefined"),  # DashScope, KoboldCpp, and gateways in any language
        *("not_finished", "finish_reason_unspecified", "unspecified"),  # watsonx, Gemini
    }
)
"""Words for no finish reason, which some servers send with each chunk until the end."""
_GAVE_UP = frozenset(
    {
        *("abort", "aborted", "failed"),  # vLLM, SGLang, LMDeploy
        *("timeout", "timed_out", "time_limit"),  # TensorRT-LLM, Cohere, watsonx
        *("cancel", "cancelled", "canceled"),  # TensorRT-LLM, Dynamo, watsonx
        *("insufficient_system_resource", "overloaded", "service_unavailable"),  # DeepSeek
    }
)
"""Finish reasons of a server that stopped before the model did. So are all that end in "error"
(vLLM, Mistral, Cohere, OpenRouter), such as "network_error" (Zhipu)."""
_WORD = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class FinishMarker(Protocol):
    """The finish marker of one stream."""

    def record(self, item: Any) -> None:
        """Take note of the next item."""

    @property
    def is_seen(self) -> bool:
        """Whether the marker came: the model is done."""
        ...

    @property
    def is_missing(self) -> bool:
        """Whether something began whose marker has not come."""
        ...

    @property
    def failure(self) -> str | None:
        """The server's code for giving up; empty if it named none, None if it did not give up."""
        ...

    @property
    def usage(self) -> Any:
        """What may say how many tokens were used: the chunk at the end, or a part of it."""
        ...


def finish_marker_for(first: Any) -> FinishMarker | None:
    """The finish marker of a stream with this first item; None where its structure is unknown."""
    try:
        if (finish := _recognised(first)) is not None:
            finish.record(first)
    except Exception:  # noqa: BLE001 - an item of unknown shape must not break its stream
        return None
    return finish


def incomplete_error(dependency: str, finish: FinishMarker) -> TruncatedStreamError | None:
    """The error of a stream that has ended incomplete; None if it is complete."""
    if (code := finish.failure) is not None:
        reason = f"by its server, which gave up: {code}" if code else "by its server"
        return TruncatedStreamError(dependency, None, reason, code)
    if finish.is_missing:
        return TruncatedStreamError(dependency, None, "before its finish marker")
    return None


def is_of_model(source: Any) -> bool:
    """Whether a stream is one of openai's or anthropic's SDK, which is never empty if complete."""
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
        is_known = read(first, "message", None) is not None
        return _Events(read, first, is_missing=True) if is_known else None
    if kind in _BEGINNINGS:
        return _Events(read, first, is_missing=True)
    # The stream begins amid a response, as one that is resumed or filtered: an end need not come.
    is_numbered = isinstance(read(first, "sequence_number", None), int)
    is_known = is_numbered and (kind == "error" or kind.startswith("response."))
    return _Events(read, first, is_missing=False) if is_known else None


# ---------------------------------------------------------------------- a reason for each choice


class _EachFinishes:
    """OpenAI's choices or Gemini's candidates: each ends with a finish reason.

    Its chunk need not be the last one: usage and late filter results may follow.
    """

    __slots__ = ("_begun", "_finished", "_name", "_read", "failure", "usage")

    def __init__(self, read: _Read, name: str) -> None:
        self._read = read
        self._name = name
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        self.failure: str | None = None
        self.usage: Any = None

    def record(self, item: Any) -> None:
        read = self._read
        for part in read(item, self._name, None) or self._without_parts(item):
            reason = read(part, "finish_reason", _ABSENT)
            if reason is not _ABSENT:
                # Gemini omits an index of 0.
                self._on_reason(reason, read(part, "index", 0) or 0, part, item)

    def _without_parts(self, item: Any) -> tuple[Any, ...]:
        """A chunk of another kind: usage, a filter's results, or an error."""
        if _within(item, "usage") is not None:
            self.usage = item
        if (error := _within(item, "error")) is not None:
            self.failure = _code_of(error)
        return ()

    def _on_reason(self, reason: Any, index: int, part: Any, item: Any) -> None:
        word = _word_of(reason)
        if not reason or word in _NOTHING:
            self._begun.add(index)
            return
        self._finished.add(index)
        self.usage = item
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
    """OpenAI's choices as objects. Hot path: attributes written out cost half of `getattr`."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(getattr, "choices")

    def record(self, item: Any) -> None:
        try:
            for choice in item.choices or self._without_parts(item):
                if choice.finish_reason:
                    self._on_reason(choice.finish_reason, choice.index or 0, choice, item)
                else:  # some providers give "" until the end
                    self._begun.add(choice.index or 0)
        except AttributeError:  # a choice without a reason or an index
            super().record(item)


# ---------------------------------------------------------------------- an item at the end

_BEGINNINGS = frozenset(
    {"response.created", "response.queued", "response.in_progress", "message-start"}
)
"""First events of OpenAI's Responses and of Cohere; Anthropic's is recognised by its message."""
_WHOLE = frozenset(
    {
        *("response.completed", "response.done"),
        "response.incomplete",  # at its limit, as with the finish reason "length"
        *("message_stop", "message-end"),
    }
)
_FAILED = frozenset({"response.failed", "response.cancelled", "error"})
_RELEVANT = _WHOLE | _FAILED | {"message_delta"}  # it has the reason of the end that follows


class _Events:
    """Events of Anthropic, OpenAI's Responses and Cohere: one of a certain type is the marker."""

    __slots__ = ("_asked", "_read", "failure", "is_missing", "is_seen", "usage")

    def __init__(self, read: _Read, first: Any, *, is_missing: bool) -> None:
        self._read = read
        self._asked = _within(_within(_within(first, "message"), "usage"), "input_tokens")
        self.is_missing = is_missing
        self.is_seen = False
        self.failure: str | None = None
        self.usage: Any = None

    def record(self, item: Any) -> None:
        if (kind := self._read(item, "type", None)) in _RELEVANT:
            self._on_event(kind, item)

    def _on_event(self, kind: str, item: Any) -> None:
        response, delta = _within(item, "response"), _within(item, "delta")
        if (usage := _within(response, "usage") or _within(item, "usage")) is not None:
            # Anthropic may report the tokens of the prompt in its first event alone.
            asked, made = _within(usage, "input_tokens"), _within(usage, "output_tokens")
            self.usage = {"input_tokens": asked or self._asked, "output_tokens": made}
        reason = _within(delta, "stop_reason") or _within(delta, "finish_reason")
        word = _word_of(_within(response, "status") or reason)
        if kind in _FAILED or _means_given_up(word):
            code = _code_of(_within(response, "error") or _within(item, "error"))
            self.failure = code or _printable(_within(item, "code")) or _printable(word) or kind
        elif kind in _WHOLE:
            self.is_seen, self.is_missing = True, False
            if response is not None:
                self.failure = None  # an earlier error did not end the response


class _Done:
    """Ollama's ``done``: true in the last item."""

    __slots__ = ("_read", "is_seen", "usage")

    failure = None

    def __init__(self, read: _Read) -> None:
        self._read = read
        self.is_seen = False
        self.usage: Any = None

    def record(self, item: Any) -> None:
        if self._read(item, "done", None) is True:
            self.is_seen = True
            self.usage = item

    @property
    def is_missing(self) -> bool:
        return not self.is_seen


# ---------------------------------------------------------------------- text


class TextLength:
    """Counts the tokens of a stream of text, which has no marker.

    Args:
        sent: Tokens of the prompt.
        first: The first piece of the text.
    """

    __slots__ = ("_tokens",)

    is_seen = is_missing = False
    failure = None

    def __init__(self, sent: int, first: str) -> None:
        self._tokens = sent + token_weight(first)

    def record(self, item: Any) -> None:
        """Count the next piece."""
        self._tokens += token_weight(item)

    @property
    def usage(self) -> Any:
        """Tokens of the prompt and of what has come."""
        return {"total_tokens": math.ceil(self._tokens)}


# ---------------------------------------------------------------------- words


def _within(thing: Any, name: str) -> Any:
    """A member of an object or a dict: SDKs keep members that they do not know as dicts."""
    return thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)


def _word_of(reason: Any) -> str:
    """A reason in lower case; Gemini's are enum members."""
    word = getattr(reason, "value", reason)
    return word.lower().replace("-", "_") if isinstance(word, str) else ""


def _means_given_up(word: str) -> bool:
    return word in _GAVE_UP or word.endswith("error") or word.startswith("error:")


def _code_of(error: Any) -> str:
    """The code of an error, else its type, else an empty text."""
    found = (_printable(_within(error, name)) for name in ("code", "type"))
    return next((word for word in found if word not in {"", "error"}), "")


def _printable(word: Any) -> str:
    """A word from outside if it may be shown in an error, else empty: a text may be a prompt."""
    match = _WORD.fullmatch(str(word)) if isinstance(word, str | int) else None
    return match[0].lower() if match else ""
