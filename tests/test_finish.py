"""How a model's stream shows that it came to its end, for each provider, and what is not judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from google.genai import types as gemini
from openai.types.chat import ChatCompletionChunk

from lightrag_resilience._finish import Finish, finish_after, is_of_model

WHOLE, CUT, NOT_JUDGED = "whole", "cut off", "not judged"


def verdict(*items: Any) -> str:
    finish = finish_after(items[0])
    if finish is None:
        return NOT_JUDGED
    for item in items[1:]:
        finish.note(item)
    assert not (finish.is_seen and finish.is_missing)
    if finish.is_missing:
        return CUT
    return WHOLE if finish.is_seen else NOT_JUDGED


def openai_dict(*choices: tuple[int, str | None], **more: Any) -> dict[str, Any]:
    """A chunk with these choices: index and finish reason."""
    return {
        "id": "a",
        "created": 0,
        "model": "m",
        "object": "chat.completion.chunk",
        "choices": [
            {"index": index, "delta": {"content": "x"}, "finish_reason": reason}
            for index, reason in choices
        ],
        **more,
    }


def openai(*choices: tuple[int, str | None]) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate(openai_dict(*choices))


def text_completion(reason: str | None) -> SimpleNamespace:
    return SimpleNamespace(choices=[SimpleNamespace(index=0, text="x", finish_reason=reason)])


def object_with(*choices: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(choices=[SimpleNamespace(**choice) for choice in choices])


def google(reason: str | None, index: int | None = None) -> gemini.GenerateContentResponse:
    return gemini.GenerateContentResponse.model_validate(
        {"candidates": [{"finish_reason": reason, "index": index}]}
    )


def anthropic(kind: str) -> SimpleNamespace:
    message = {"message": SimpleNamespace(id="a")} if kind == "message_start" else {}
    return SimpleNamespace(type=kind, **message)


def ollama(done: bool) -> SimpleNamespace:  # noqa: FBT001 - its own field
    return SimpleNamespace(message=SimpleNamespace(content="x"), done=done)


MORE, STOP, USAGE = openai((0, None)), openai((0, "stop")), openai()


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((MORE, STOP), WHOLE),
        ((MORE, openai((0, "length"))), WHOLE),
        ((MORE, STOP, USAGE), WHOLE),
        ((STOP,), WHOLE),
        ((MORE,), CUT),
        ((MORE, MORE, USAGE), CUT),
        ((USAGE, MORE, STOP), WHOLE),  # Azure's first chunk tells of its filter only
        ((USAGE, MORE), CUT),
        ((USAGE,), NOT_JUDGED),
        ((MORE, STOP, MORE), WHOLE),  # and its filter may tell more after the end
        ((MORE, openai((1, None)), STOP, openai((1, "stop"))), WHOLE),
        ((MORE, openai((1, None)), STOP), CUT),
        ((openai((0, None), (1, None)), openai((0, "stop"), (1, "stop"))), WHOLE),
        ((openai((0, None), (1, None)), openai((0, None), (1, "stop"))), CUT),
        ((MORE, "text", STOP), WHOLE),
        ((text_completion(None), text_completion("stop")), WHOLE),
        ((text_completion(None), text_completion(None)), CUT),
        ((openai_dict((0, None)), openai_dict((0, "stop"))), WHOLE),
        ((openai_dict((0, None)), openai_dict((0, None))), CUT),
        ((openai_dict((0, "")), openai_dict((0, ""))), CUT),
        ((openai_dict((0, "")), openai_dict((0, "stop"))), WHOLE),
        (({"choices": [{"delta": {"content": "x"}}]},), NOT_JUDGED),
        ((object_with({"text": "x"}), object_with({"text": "x"})), NOT_JUDGED),
        ((object_with({"finish_reason": None}), object_with({"finish_reason": "stop"})), WHOLE),
        ((object_with({"finish_reason": None}), object_with({"finish_reason": None})), CUT),
        ((MORE, object_with({"finish_reason": "stop"})), WHOLE),
        ((MORE, object_with({"finish_reason": "stop", "index": None})), WHOLE),
        ((MORE, object_with({"finish_reason": "", "index": 0})), CUT),
        ((MORE, SimpleNamespace(choices=None), STOP), WHOLE),
    ],
)
def test_openai(items: Any, expected: str) -> None:
    assert verdict(*items) == expected


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((google(None), google("STOP")), WHOLE),
        ((google(None), google("MAX_TOKENS", 0)), WHOLE),
        ((google(None, 0), google(None)), CUT),
        ((google(None), google(None, 1), google("STOP")), CUT),
        ((gemini.GenerateContentResponse(candidates=[]), google("STOP")), WHOLE),
        ((gemini.GenerateContentResponse(), google("STOP")), NOT_JUDGED),
    ],
)
def test_gemini(items: Any, expected: str) -> None:
    assert verdict(*items) == expected


START, DELTA, END = map(anthropic, ["message_start", "content_block_delta", "message_stop"])


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((START, DELTA, END), WHOLE),
        ((START, DELTA), CUT),
        ((START,), CUT),
        ((DELTA, END), NOT_JUDGED),
        ((SimpleNamespace(type="message_start"), END), NOT_JUDGED),
        (({"type": "message_start", "message": {}}, {"type": "message_stop"}), WHOLE),
        (({"type": "message_start", "message": {}}, {"type": "ping"}), CUT),
    ],
)
def test_anthropic(items: Any, expected: str) -> None:
    assert verdict(*items) == expected


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((ollama(done=False), ollama(done=True)), WHOLE),
        ((ollama(done=True),), WHOLE),
        ((ollama(done=False), ollama(done=False)), CUT),
        (({"response": "x", "done": False}, {"response": "", "done": True}), WHOLE),
        (({"response": "x", "done": False},), CUT),
        (({"status": "pulling", "done": False},), NOT_JUDGED),
        ((SimpleNamespace(message="x", done=None),), NOT_JUDGED),
    ],
)
def test_ollama(items: Any, expected: str) -> None:
    assert verdict(*items) == expected


class Odd:
    """Raises at what is read of it."""

    @property
    def choices(self) -> Any:
        raise RuntimeError("gone")

    finish_reason = choices


@pytest.mark.parametrize(
    "item",
    [
        "text",
        b"bytes",
        7,
        None,
        ["choices"],
        Odd(),
        {"choices": "none"},
        {"choices": [Odd()]},
        {"type": "message"},
        {"done": False},
        {"message": "x"},
        SimpleNamespace(choices=None, candidates=None),
    ],
)
def test_what_is_not_recognised_is_not_judged(item: Any) -> None:
    finish: Finish | None = finish_after(item)
    assert finish is None


@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_the_stream_of_an_sdk_is_known_by_its_class(package: str) -> None:
    cls = pytest.importorskip(package).AsyncStream
    assert is_of_model(cls.__new__(cls))


def test_other_streams_may_be_empty() -> None:
    class AsyncStream:
        pass

    async def words() -> Any:
        yield 1

    assert not any(map(is_of_model, [words(), AsyncStream(), None]))
