"""The clients that llmock judges: the SDKs and LightRAG's bindings, with nothing around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anthropic
import openai
import pytest
from lightrag.llm.anthropic import anthropic_complete_if_cache
from lightrag.llm.openai import openai_complete_if_cache, openai_embed
from llmock.pytest_plugin import LLMock

__all__ = [
    "ANSWERING",
    "EMBEDDING",
    "FOR_GOOD",
    "PASSING",
    "STREAMING",
    "TEXT",
    "WITH_A_WAIT",
    "Client",
    "asking",
    "break_next",
    "of",
    "say",
    "sdk_of",
    "speaking",
    "text_of",
]

TEXT = "one two three four five six seven eight"  # what the model says
WITH_A_WAIT = (429, 503, 504, 529)  # llmock sends Retry-After with these
PASSING = (408, 409, 500, 502, *WITH_A_WAIT)
FOR_GOOD = (400, 401, 403, 404, 422)

F = TypeVar("F", bound=Callable[..., Any])

_KEY = "none"
_MESSAGES: Any = [{"role": "user", "content": "Say something."}]


@dataclass(frozen=True, slots=True)
class Client:
    """One way to ask.

    Attributes:
        name: For the names of tests.
        provider: As llmock calls it.
        ask: Given the provider's SDK, asks once for a text, a stream, or vectors.
    """

    name: str
    provider: str
    ask: Callable[[Any], Awaitable[Any]]

    @property
    def is_binding(self) -> bool:
        """Whether LightRAG is between, which retries by itself and makes text of chunks."""
        return self.name.startswith("lightrag")


@asynccontextmanager
async def sdk_of(client: Client, url: str) -> AsyncIterator[Any]:
    """The SDK of a client's provider at a base URL, its own retries off."""
    made: Any = openai.AsyncOpenAI if client.provider == "openai" else anthropic.AsyncAnthropic
    async with made(base_url=url, api_key=_KEY, max_retries=0) as sdk:
        yield sdk


@asynccontextmanager
async def asking(client: Client, llmock: LLMock) -> AsyncIterator[Any]:
    """A coroutine function without arguments that asks once."""
    async with sdk_of(client, llmock.base_url(client.provider)) as sdk:

        async def ask() -> Any:
            return await client.ask(sdk)

        yield ask


async def say(sdk: Any, number: int, **more: Any) -> Any:
    """Ask one of the SDKs for a text, with a question of its own: llmock knows calls by theirs."""
    message = {"role": "user", "content": f"Say {number}."}
    asked: Any = {"model": "m", "messages": [message], "max_tokens": 99, **more}
    if isinstance(sdk, anthropic.AsyncAnthropic):
        return await sdk.messages.create(**asked)
    return await sdk.chat.completions.create(**asked)


def of(clients: list[Client]) -> Callable[[F], F]:
    """A test that is run for each of them."""
    return pytest.mark.parametrize("client", clients, ids=lambda client: client.name)


def speaking(llmock: LLMock) -> LLMock:
    """Says one text, a word in 5 ms: a client that leaves is seen before all is sent."""
    return llmock.reply(TEXT, times=None).pace(5)


def break_next(llmock: LLMock, kind: str, after: int) -> None:
    """Let the next stream break by a method of llmock's."""
    if kind == "corrupt":  # the stream goes on after it: time to leave before its end
        llmock.pace(25)
    getattr(llmock, kind)(after_chunks=after)


# ---------------------------------------------------------------------- the SDKs


async def _openai_text(sdk: Any) -> Any:
    answer = await sdk.chat.completions.create(model="m", messages=_MESSAGES)
    return answer.choices[0].message.content


async def _openai_stream(sdk: Any) -> Any:
    return await sdk.chat.completions.create(model="m", messages=_MESSAGES, stream=True)


async def _openai_vectors(sdk: Any) -> Any:
    return (await sdk.embeddings.create(model="m", input=["a text"])).data[0].embedding


async def _anthropic_text(sdk: Any) -> Any:
    answer = await sdk.messages.create(model="m", max_tokens=99, messages=_MESSAGES)
    return answer.content[0].text


async def _anthropic_stream(sdk: Any) -> Any:
    return await sdk.messages.create(model="m", max_tokens=99, messages=_MESSAGES, stream=True)


# ---------------------------------------------------------------------- LightRAG's bindings

_openai_binding: Any = openai_complete_if_cache
_anthropic_binding: Any = anthropic_complete_if_cache


def _at(sdk: Any) -> Any:
    return {"base_url": str(sdk.base_url), "api_key": _KEY}


async def _lightrag_openai_text(sdk: Any) -> Any:
    return await _openai_binding("m", "Say something.", **_at(sdk))


async def _lightrag_openai_stream(sdk: Any) -> Any:
    return await _openai_binding("m", "Say something.", stream=True, **_at(sdk))


async def _lightrag_openai_vectors(sdk: Any) -> Any:
    return (await openai_embed.func(["a text"], model="m", **_at(sdk)))[0]


async def _lightrag_anthropic_text(sdk: Any) -> Any:
    return await _anthropic_binding("m", "Say something.", **_at(sdk))


async def _lightrag_anthropic_stream(sdk: Any) -> Any:
    return await _anthropic_binding("m", "Say something.", stream=True, **_at(sdk))


ANSWERING = [
    Client("openai", "openai", _openai_text),
    Client("anthropic", "anthropic", _anthropic_text),
    Client("lightrag-openai", "openai", _lightrag_openai_text),
    Client("lightrag-anthropic", "anthropic", _lightrag_anthropic_text),
]
EMBEDDING = [
    Client("openai-embedding", "openai", _openai_vectors),
    Client("lightrag-embedding", "openai", _lightrag_openai_vectors),
]
STREAMING = [
    Client("openai", "openai", _openai_stream),
    Client("anthropic", "anthropic", _anthropic_stream),
    Client("lightrag-openai", "openai", _lightrag_openai_stream),
    Client("lightrag-anthropic", "anthropic", _lightrag_anthropic_stream),
]


def text_of(items: list[Any]) -> str:
    """What the items of a stream say together, whichever client gave them."""
    return "".join(map(_piece, items))


def _piece(item: Any) -> str:
    if isinstance(item, str):
        return item
    if (choices := getattr(item, "choices", None)) is not None:
        return (choices[0].delta.content or "") if choices else ""
    return getattr(getattr(item, "delta", None), "text", None) or ""
