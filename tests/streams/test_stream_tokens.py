"""What a stream's last chunks say of its tokens settles its call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience.events import Event, TokensUsed
from support.guards import guard_on_loop

pytestmark = pytest.mark.anyio


def choice(reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": reason}], **more}


USAGE = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
STREAMS = {
    "openai": [choice(), choice("stop"), {"choices": [], "usage": USAGE}],
    "openai, with a filter's results last": [
        choice(),
        choice("stop"),
        {"choices": [], "usage": USAGE},
        {"choices": []},
    ],
    "usage in the chunk of the marker": [choice(), choice("stop", usage=USAGE)],
    "ollama": [
        {"message": {}, "done": False},
        {"message": {}, "done": True, "prompt_eval_count": 20, "eval_count": 10},
    ],
    "anthropic": [
        {"type": "message_start", "message": {"usage": {"input_tokens": 20}}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 10}},
        {"type": "message_stop"},
    ],
    "responses": [
        {"type": "response.created", "response": {}},
        {
            "type": "response.completed",
            "response": {"usage": {"input_tokens": 20, "output_tokens": 10}},
        },
    ],
    "gemini": [
        {"candidates": [{"finish_reason": None}], "usage_metadata": {"total_token_count": 22}},
        {"candidates": [{"finish_reason": "STOP"}], "usage_metadata": {"total_token_count": 30}},
    ],
}


@pytest.mark.parametrize("chunks", STREAMS.values(), ids=STREAMS)
async def test_the_usage_of_a_stream_is_counted_at_its_end(chunks: list[Any]) -> None:
    async def stream() -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk

    guard, used = guard_on_loop(), list[Event]()
    guard.events.subscribe(used.append, TokensUsed)
    async for _ in await guard.call(stream):
        assert used == []
    assert used == [TokensUsed("llm", "other", "answer", 30)]
