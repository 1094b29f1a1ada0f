"""Whether a stream of a model came to its end, or was cut off before it.

Chunks are recognised by their structure, as SDKs' objects or as dicts; no SDK is imported. What is
not recognised, text above all, is never judged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Finish", "finish_after", "is_of_model"]

_Read = Callable[[Any, str, Any], Any]
_UNTOLD: Any = object()
_STREAMS_OF_SDKS = frozenset({"openai", "openai._streaming", "anthropic", "anthropic._streaming"})


class Finish(Protocol):
    """The finish marker of one stream."""

    def note(self, item: Any) -> None:
        """The next item came."""

    @property
    def is_seen(self) -> bool:
        """Whether the model has said all."""
        ...

    @property
    def is_missing(self) -> bool:
        """Whether something began and is not finished."""
        ...


def finish_after(first: Any) -> Finish | None:
    """What to look for in a stream with this first item; None where nobody knows."""
    try:
        if (finish := _recognised(first)) is not None:
            finish.note(first)
    except Exception:  # noqa: BLE001 - an item's odd attributes must not break its stream
        return None
    return finish


def _recognised(first: Any) -> Finish | None:
    read: _Read = dict.get if isinstance(first, dict) else getattr
    for name in ("choices", "candidates"):
        if isinstance(read(first, name, None), list):
            return _Choices() if (read, name) == (getattr, "choices") else _EachFinishes(read, name)
    if read(first, "type", None) == "message_start" and read(first, "message", None) is not None:
        return _LastItem(read, "type", "message_stop")
    parts = (read(first, "message", None), read(first, "response", None))
    if isinstance(read(first, "done", None), bool) and parts != (None, None):
        return _LastItem(read, "done", True)
    return None


def is_of_model(source: Any) -> bool:
    """Whether a stream is one of openai's or anthropic's SDK, never empty if whole."""
    cls = type(source)
    return cls.__name__ == "AsyncStream" and cls.__module__ in _STREAMS_OF_SDKS


class _EachFinishes:
    """The choices of OpenAI's chunks, the candidates of Gemini's: each has a reason at its end.

    The reason need not come in the last chunk: usage and late filter results follow it.
    """

    __slots__ = ("_begun", "_finished", "_name", "_read")

    def __init__(self, read: _Read, name: str) -> None:
        self._read = read
        self._name = name
        self._begun: set[int] = set()
        self._finished: set[int] = set()

    def note(self, item: Any) -> None:
        read = self._read
        for part in read(item, self._name, None) or ():
            reason = read(part, "finish_reason", _UNTOLD)
            if reason is not _UNTOLD:
                # Gemini leaves an index of 0 out; some providers give "" until the end.
                (self._finished if reason else self._begun).add(read(part, "index", 0) or 0)

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

    def note(self, item: Any) -> None:
        try:
            for choice in item.choices or ():
                (self._finished if choice.finish_reason else self._begun).add(choice.index or 0)
        except AttributeError:  # one without a reason, or an index
            super().note(item)


class _LastItem:
    """Anthropic's `message_stop`, Ollama's `done`: an item of its own, or a mark on the last."""

    __slots__ = ("_name", "_read", "_value", "is_seen")

    def __init__(self, read: _Read, name: str, value: object) -> None:
        self._read = read
        self._name = name
        self._value = value
        self.is_seen = False

    def note(self, item: Any) -> None:
        if self._read(item, self._name, None) == self._value:
            self.is_seen = True

    @property
    def is_missing(self) -> bool:
        return not self.is_seen
