"""How a model's stream shows that it came to its end, for each provider, and what is not judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from google.genai import types as gemini
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from lightrag_resilience import FailureKind, TruncatedStreamError
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.streams.finish_markers import (
    FinishMarker,
    finish_marker_for,
    incomplete_error,
    is_of_model,
)

WHOLE, CUT, NOT_JUDGED = "whole", "cut off", "not judged"


def verdict(*items: Any) -> str:
    """What becomes of a stream of these; where its server gave up, the word by which it did."""
    finish = finish_marker_for(items[0])
    if finish is None:
        return NOT_JUDGED
    for item in items[1:]:
        finish.record(item)
    assert not (finish.is_seen and finish.is_missing)
    error = incomplete_error("llm", finish)
    assert (error is None) is not (finish.is_missing or finish.failure is not None)
    if finish.failure is not None:
        assert error is not None
        assert error.code == finish.failure
        return finish.failure
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
        ((USAGE, MORE, STOP), WHOLE),  # Azure's first chunk holds only its filter
        ((USAGE, MORE), CUT),
        ((USAGE,), NOT_JUDGED),
        ((MORE, STOP, MORE), WHOLE),  # and its filter may follow the end
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
        (
            (
                {"type": "message_start", "message": {}},
                {"type": "message_delta", "delta": {"stop_reason": "abort"}},
                {"type": "message_stop"},
            ),
            "abort",
        ),
        (
            (
                {"type": "message_start", "message": {}},
                {"type": "error", "error": {"type": "overloaded_error"}},
            ),
            "overloaded_error",
        ),
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


@pytest.mark.parametrize(
    "nothing", ["", "null", "None", "none", "NULL", "not_finished", "FINISH_REASON_UNSPECIFIED"]
)
@pytest.mark.parametrize("chunk_of", [openai_dict, text_completion])
def test_a_word_for_nothing_is_no_finish_reason(nothing: str, chunk_of: Any) -> None:
    more, stop = (
        (chunk_of((0, nothing)), chunk_of((0, "stop")))
        if chunk_of is openai_dict
        else (chunk_of(nothing), chunk_of("stop"))
    )
    assert (verdict(more, more), verdict(more, stop)) == (CUT, WHOLE)


def test_a_candidate_without_a_named_reason_is_not_finished() -> None:
    assert verdict(google(None), google("FINISH_REASON_UNSPECIFIED")) == CUT


@pytest.mark.parametrize(
    "reason",
    [
        *("error", "ERROR", "abort", "network_error", "insufficient_system_resource"),
        *("timeout", "cancelled", "time_limit", "internal-error", "upstream_error"),
    ],
)
def test_a_reason_that_means_given_up_is_a_failure(reason: str) -> None:
    word = reason.lower().replace("-", "_")
    assert verdict(openai_dict((0, None)), openai_dict((0, reason))) == word
    assert verdict(text_completion(None), text_completion(reason)) == word
    assert verdict(openai_dict((0, None), (1, None)), openai_dict((0, "stop"), (1, reason))) == word


@pytest.mark.parametrize(
    "reason",
    [
        *("stop", "length", "tool_calls", "function_call", "content_filter"),  # OpenAI, Azure
        *("end_turn", "max_tokens", "pause_turn", "refusal", "model_context_window_exceeded"),
        *("SAFETY", "OTHER", "MALFORMED_FUNCTION_CALL"),  # Gemini
        *("eos_token", "stop_sequence", "eos", "model_length", "COMPLETE", "ERROR_TOXIC"),
        *("sensitive", "guardrail_intervened", "load", "repetition"),
    ],
)
def test_a_reason_of_the_model_itself_is_an_end(reason: str) -> None:
    assert verdict(openai_dict((0, None)), openai_dict((0, reason))) == WHOLE


def test_an_error_beside_a_finish_reason_is_named_by_its_code() -> None:
    error = {"error": {"code": 502, "message": "a text"}}
    assert verdict(MORE, openai_dict((0, "error"), **error)) == "502"
    assert verdict(openai_dict((0, None)), {"error": {"type": "overloaded_error"}}) == (
        "overloaded_error"
    )
    assert verdict(openai_dict((0, None)), {"error": {"code": "of many words"}}) == ""


def responses(kind: str, **more: Any) -> Any:
    """An event of OpenAI's Responses, as its SDK has it."""
    return TypeAdapter(ResponseStreamEvent).validate_python(
        {"type": kind, "sequence_number": 1, **more}
    )


def response(status: str, code: str | None = None) -> dict[str, Any]:
    error = None if code is None else {"code": code, "message": "a text"}
    return {
        "response": {
            "id": "a",
            "created_at": 0,
            "model": "m",
            "object": "response",
            "output": [],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "status": status,
            "error": error,
        }
    }


CREATED = responses("response.created", **response("in_progress"))
WORDS = responses(
    "response.output_text.delta",
    content_index=0,
    output_index=0,
    item_id="a",
    delta="x",
    logprobs=[],
)
COMPLETED = responses("response.completed", **response("completed"))
INCOMPLETE = responses("response.incomplete", **response("incomplete"))
FAILED = responses("response.failed", **response("failed", "server_error"))
ERROR = responses("error", code="rate_limit_exceeded", message="a text", param=None)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((CREATED, WORDS, COMPLETED), WHOLE),
        ((CREATED, WORDS, INCOMPLETE), WHOLE),  # at its limit, as "length"
        ((CREATED, WORDS), CUT),
        ((CREATED,), CUT),
        ((CREATED, WORDS, FAILED), "server_error"),
        ((CREATED, WORDS, ERROR), "rate_limit_exceeded"),
        ((ERROR,), "rate_limit_exceeded"),
        ((CREATED, ERROR, FAILED), "server_error"),
        ((CREATED, ERROR, WORDS, COMPLETED), WHOLE),
        ((WORDS, WORDS), NOT_JUDGED),  # a function may let the words alone through
        ((WORDS, FAILED), "server_error"),
        (({"type": "response.created", "response": {}}, {"type": "response.completed"}), WHOLE),
        (
            ({"type": "response.created", "response": {}}, {"type": "response.failed"}),
            "response.failed",
        ),
        ((CREATED, {"type": "error", "error": {"code": "server_error"}}), CUT),  # other objects
        (({"type": "response.created"}, {"type": "error", "code": "server_error"}), "server_error"),
        (({"type": "response.created"}, {"type": "response.cancelled"}), "response.cancelled"),
        (
            ({"type": "response.created"}, {"type": "response.done", **response("failed", "a")}),
            "a",
        ),
        (({"type": "response.created"}, {"type": "response.done", **response("completed")}), WHOLE),
        (({"type": "response.text", "text": "a function's own"},), NOT_JUDGED),
        (({"type": "error", "text": "a function's own"},), NOT_JUDGED),
    ],
)
def test_responses_of_openai(items: Any, expected: str) -> None:
    assert verdict(*items) == expected


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", FailureKind.TRANSIENT),
        ("vector_store_timeout", FailureKind.TRANSIENT),
        ("rate_limit_exceeded", FailureKind.THROTTLED),
        ("invalid_prompt", FailureKind.FATAL),
        ("insufficient_quota", FailureKind.FATAL),
        ("image_too_large", FailureKind.FATAL),
        ("502", FailureKind.TRANSIENT),
        ("network_error", FailureKind.UNKNOWN_OUTCOME),
        ("", FailureKind.UNKNOWN_OUTCOME),
    ],
)
def test_what_a_server_gave_up_with_has_the_class_of_its_code(code: str, kind: FailureKind) -> None:
    assert classify(TruncatedStreamError("llm", None, "by its server", code)).kind is kind


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (({"type": "message-start", "id": "a"}, {"type": "content-delta"}), CUT),
        (
            (
                {"type": "message-start", "id": "a"},
                {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}},
            ),
            WHOLE,
        ),
        (
            (
                {"type": "message-start", "id": "a"},
                {"type": "message-end", "delta": {"finish_reason": "ERROR"}},
            ),
            "error",
        ),
    ],
)
def test_cohere(items: Any, expected: str) -> None:
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
    finish: FinishMarker | None = finish_marker_for(item)
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
