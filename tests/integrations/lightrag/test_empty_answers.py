"""A model's own empty text, or page, costs no document and no query; an outage's is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag import QueryParam
from lightrag.llm.openai import InvalidResponseError

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import protect
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

QUICK = {
    "RESILIENCE_RECOVERY": "false",
    "RESILIENCE_LLM__RETRY__INITIAL_BACKOFF": "0.001",
    "RESILIENCE_LLM__RETRY__MAX_BACKOFF": "0.001",
    "RESILIENCE_LLM__RETRY__BUDGET": "0",
}


class Terse(Provider):
    """Answers some prompts with an empty text, or with an error, as LightRAG's binding does."""

    def __init__(self, is_empty: Callable[[str], bool], error: Exception | None = None) -> None:
        super().__init__()
        self.is_empty = is_empty
        self.error = error
        self.text = ""

    async def complete(
        self, prompt: str, *, system_prompt: str | None = None, stream: bool = False, **_: Any
    ) -> Any:
        if not self.is_empty(f"{system_prompt}{prompt}"):
            return await super().complete(prompt, stream=stream)
        self._called("empty")
        if self.error is not None:
            raise self.error
        return self.text


async def statuses(rag: Any) -> dict[str, int]:
    counts: dict[str, int] = await rag.doc_status.get_status_counts()
    return {status: count for status, count in counts.items() if count and status != "all"}


async def test_a_document_is_processed_though_the_model_extracts_nothing_of_it() -> None:
    """As by LightRAG alone, where the binding returns the empty text; soon, once it is known."""
    provider = Terse(lambda text: "Bertrand" in text)
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=Guards(settings=load_settings(QUICK)))
        await rag.ainsert(["Ada founded Alderwick.", "Bertrand founded Elm."])
        first = provider.count("empty")
        assert first > 3
        await rag.ainsert(["Bertrand founded Fir."])
        assert provider.count("empty") - first == 3
        assert await statuses(rag) == {"processed": 3}


async def test_a_query_is_answered_though_the_model_finds_no_keyword() -> None:
    provider = Terse(lambda text: "keyword extractor" in text)
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=Guards(settings=load_settings(QUICK)))
        await rag.ainsert("Ada founded Alderwick.")
        assert await rag.aquery("Who?", QueryParam(mode="mix")) == "Ada founded Alderwick."


async def test_a_query_is_answered_by_a_page_that_the_model_wrote() -> None:
    provider = Terse(lambda text: "Ada as a document" in text)
    provider.text = "<html><body>Ada</body></html>"
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=Guards(settings=load_settings(QUICK)))
        await rag.ainsert("Ada founded Alderwick.")
        assert await rag.aquery("Ada as a document", QueryParam(mode="naive")) == provider.text


async def test_a_document_fails_soon_where_the_binding_raises_for_the_empty_text() -> None:
    """As by LightRAG alone: no wait would make the model answer."""
    message = "Received empty content from OpenAI API (finish_reason=stop)"
    provider = Terse(lambda text: "Bertrand" in text, InvalidResponseError(message))
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=Guards(settings=load_settings(QUICK)))
        await rag.ainsert(["Ada founded Alderwick.", "Bertrand founded Elm."])
        assert await statuses(rag) == {"failed": 1, "processed": 1}


async def test_an_empty_text_is_not_taken_for_the_models_while_all_are_empty() -> None:
    is_down = True

    def empty(_: str) -> bool:
        return is_down

    class Returning(Terse):
        async def complete(self, prompt: str, **options: Any) -> Any:
            nonlocal is_down
            is_down = self.count("empty") < 12
            return await super().complete(prompt, **options)

    provider = Returning(empty)
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=Guards(settings=load_settings(QUICK)))
        await rag.ainsert("Ada founded Alderwick.")
        assert await rag.chunk_entity_relation_graph.get_node("Ada")
