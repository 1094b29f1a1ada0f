"""What a gateway answers in the provider's place counts as a failure; a caller's bug does not.

The SDKs stumble over it, and so does LightRAG's code around them: with errors of Python's.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lightrag_resilience.failures.classifier import Failure, classify
from support.lookalikes import importorskip
from support.verdicts import FATAL, TRANSIENT, UNKNOWN

PAGE = b"<html><body>We will be back soon.</body></html>"
ANSWERS = [
    ("text/html", PAGE),
    ("application/json", PAGE),
    ("application/json", b""),
    ("application/json", b'{"message": "no upstream"}'),
    ("application/json", b"null"),
    ("application/json", b"[]"),
    ("application/json", b'{"choices": null, "data": null, "results": null, "content": null}'),
    ("text/plain", b"upstream connect error"),
]


def raised_in(module: str, code: str, **names: Any) -> Exception:
    """What some code raises as a part of a module."""
    namespace: dict[str, Any] = {"__name__": module, "json": json, **names}
    exec(f"def read(answer=None):\n    {code}", namespace)  # noqa: S102 - what a module would hold
    with pytest.raises(Exception) as raised:  # noqa: PT011 - of any kind
        namespace["read"]()
    return raised.value


STUMBLES = [
    "'page'.choices",
    "answer.choices",
    "answer['data']",
    "{}['data']",
    "[*answer][0]",
    "len(answer)",
    "str(answer)['choices']",
    "float('page')",
    "one, two = answer or ()",
    "[*answer]",
    "int(answer)",
    "dict(**'page')",
]


@pytest.mark.parametrize("code", STUMBLES)
def test_an_sdk_that_fails_on_an_unexpected_answer_is_of_unknown_outcome(code: str) -> None:
    modules = ("openai._base_client", "anthropic", "google.genai.models", "ollama._client")
    bindings = ("lightrag.llm.openai", "lightrag.llm.jina", "lightrag.rerank", "voyageai.object")
    for module in (*modules, *bindings):
        assert classify(raised_in(module, code)) == UNKNOWN
    for module in ("application", "openaix", "lightrag.operate", "lightrag.utils", "__main__"):
        # A text that code reads as if it were an answer was one, whichever code reads it.
        assert classify(raised_in(module, code)) == (UNKNOWN if code == STUMBLES[0] else FATAL)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("json.loads('<!DOCTYPE html><p>502')", UNKNOWN),
        ("json.loads(' <html>')", UNKNOWN),
        ("json.loads('<think>{}')", FATAL),
        ("json.loads('{')", FATAL),
        ("b'page'.data", UNKNOWN),
        ("'page'.choise", FATAL),
        ("[].choices", FATAL),
    ],
)
def test_a_gateways_page_is_recognised_in_any_code(code: str, expected: Failure) -> None:
    assert classify(raised_in("application", code)) == expected


@pytest.mark.parametrize(
    "code", ["json.loads({'error': {}})", "base64.b64decode(None)", "base64.b64decode('pag')"]
)
def test_what_an_sdk_cannot_decode_was_in_the_answer(code: str) -> None:
    """As Ollama's package does with an error of the OpenAI form: its own message is decoded."""
    for module in ("ollama._types", "lightrag.llm.openai"):
        assert classify(raised_in(module, code, base64=base64)) == UNKNOWN
    assert classify(raised_in("application", code, base64=base64)) == FATAL


def test_an_sdk_that_says_it_received_nothing() -> None:
    nothing = "raise ValueError('No embedding data received')"
    assert classify(raised_in("openai.resources.embeddings", nothing)) == UNKNOWN


@pytest.mark.parametrize("cls", [ValueError, type("Mine", (ValueError,), {})])
def test_a_value_error_raised_from_a_drivers_error_is_classified_by_that(
    cls: type[Exception],
) -> None:
    def raised_from(cause: Exception) -> Exception:
        error = cls("it did not work")
        error.__cause__ = cause
        return error

    assert classify(raised_from(ConnectionRefusedError(111, "m"))) == TRANSIENT
    assert classify(raised_from(TimeoutError())) == UNKNOWN
    assert classify(raised_from(KeyError("a key"))) == FATAL


@pytest.mark.parametrize(
    "code",
    [
        "raise TypeError('messages must be a list')",
        "raise ValueError('no such voice')",
        "raise KeyError('OPENAI_API_KEY')",
        "json.dumps({1: object()})",
        "read(None, stream=True)",
        "read(1, 2, 3)",
        "(lambda one, *, two: 0)()",
    ],
)
def test_an_sdks_error_about_its_arguments_is_the_callers_fault(code: str) -> None:
    assert classify(raised_in("openai._base_client", code)) == FATAL
    assert classify(raised_in("lightrag.llm.openai", code)) == FATAL


def test_a_callers_bug_inside_a_binding_is_fatal() -> None:
    def tool() -> str:
        return "no number" + 1  # type: ignore[operator,no-any-return]

    assert classify(raised_in("lightrag.llm.openai", "tool()", tool=tool)) == FATAL


def test_lightrag_says_that_an_answer_was_empty() -> None:
    code = "raise ValueError('Jina API returned empty data list')"
    assert classify(raised_in("lightrag.llm.jina", code)) == UNKNOWN
    assert classify(raised_in("application", code)) == FATAL


def test_a_schema_that_an_answer_breaks_is_not_one_that_a_request_breaks() -> None:
    pydantic = importorskip("pydantic")

    def check(title: str) -> Callable[[], object]:
        model: Any = pydantic.create_model(title, number=(int, ...))
        return lambda: model(number="page")

    for title, expected in (("ChatResponse", UNKNOWN), ("ChatRequest", FATAL)):
        error = raised_in("ollama._client", "check()", check=check(title))
        assert classify(error) == expected
        assert classify(raised_in("application", "check()", check=check(title))) == FATAL


# ---------------------------------------------------------------------- LightRAG's bindings


@asynccontextmanager
async def gateway(content_type: str, body: bytes) -> Any:
    """A server that answers every request with the same 200."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (
                int(line[15:])
                for line in head.lower().split(b"\r\n")
                if line[:15] == b"content-length:"
            ),
            0,
        )
        await reader.readexactly(length)
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
            b"content-type: %s\r\ncontent-length: %d\r\n\r\n" % (content_type.encode(), len(body))
        )
        writer.write(body)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


async def no_wait(_: float) -> None:
    """In place of a sleep."""


def binding(module: str, name: str) -> Any:
    """A function of LightRAG's."""
    found = getattr(importlib.import_module(f"lightrag.{module}"), name)
    return getattr(found, "func", found)


RETRIED = [
    ("llm.openai", "openai_complete_if_cache"),
    ("llm.openai", "openai_embed"),
    ("llm.anthropic", "anthropic_complete_if_cache"),
    ("llm.ollama", "_ollama_model_if_cache"),
    ("llm.ollama", "ollama_embed"),
    ("llm.jina", "jina_embed"),
    ("rerank", "generic_rerank_api"),
]
BINDINGS: dict[str, Callable[[str], Awaitable[object]]] = {
    "openai": lambda at: binding("llm.openai", "openai_complete_if_cache")(
        "m", "p", base_url=f"{at}/v1", api_key="k"
    ),
    "openai, embedding": lambda at: binding("llm.openai", "openai_embed")(
        ["text"], model="m", base_url=f"{at}/v1", api_key="k"
    ),
    "anthropic": lambda at: binding("llm.anthropic", "anthropic_complete_if_cache")(
        "m", "p", base_url=at, api_key="k"
    ),
    "ollama": lambda at: binding("llm.ollama", "_ollama_model_if_cache")("m", "p", host=at),
    "ollama, embedding": lambda at: binding("llm.ollama", "ollama_embed")(
        ["text"], embed_model="m", host=at
    ),
    "jina": lambda at: binding("llm.jina", "jina_embed")(["text"], base_url=at, api_key="k"),
    "rerank": lambda at: binding("rerank", "cohere_rerank")(
        "q", ["text"], base_url=at, api_key="k"
    ),
}


@pytest.mark.lightrag
@pytest.mark.parametrize(("content_type", "body"), ANSWERS)
@pytest.mark.parametrize("name", BINDINGS)
def test_a_gateways_answer_in_place_of_the_providers_counts(
    monkeypatch: pytest.MonkeyPatch, name: str, content_type: str, body: bytes
) -> None:
    importorskip("lightrag")
    for retried in RETRIED:
        if own_retries := getattr(binding(*retried), "retry", None):
            monkeypatch.setattr(own_retries, "sleep", no_wait)

    async def call() -> object:
        async with gateway(content_type, body) as address:
            return await BINDINGS[name](address)

    found = asyncio.run(outcome(call()))
    if not isinstance(found, Exception):
        pytest.skip(f"the binding makes {str(found)[:60]!r} of it: no error to judge")
    assert classify(found).counts, repr(found)
    contracts = importorskip("lightrag_resilience.integrations.lightrag.contracts")
    told = contracts.Contract("llm.openai", (), {}).broken_by(found)
    assert told is not None, repr(found)
    assert classify(told) == classify(found)


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except Exception as error:  # noqa: BLE001 - whichever it is, the test looks at it
        return error
