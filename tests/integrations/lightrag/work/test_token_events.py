"""The tokens of a query and of a document, and for what they were wasted; with no limit set."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from lightrag import LightRAG, QueryParam
from lightrag.llm import ollama, openai

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import DocumentProcessed, Event, QueryCompleted, TokensUsed
from lightrag_resilience.integrations.lightrag import protect
from lightrag_resilience.integrations.lightrag.compat import takes_tracker
from support.lightrag_rig import ANSWER, Provider, lightrag_on
from support.virtual_time import anyio_backend

__all__ = ["anyio_backend"]

from_1_5 = pytest.mark.skipif(
    not hasattr(LightRAG, "process_single_document"), reason="LightRAG 1.4 does not have it"
)
pytestmark = [pytest.mark.anyio, pytest.mark.lightrag, pytest.mark.once]

QUESTION = "Who founded Alderwick?"
BYPASS = QueryParam(mode="bypass")


class Reporting(Provider):
    """A model that says how many tokens it used, and may need long for an answer."""

    seconds = 0.0

    async def complete(
        self, prompt: str, *, stream: bool = False, token_tracker: Any = None, **more: Any
    ) -> Any:
        await asyncio.sleep(self.seconds)
        answer = await super().complete(prompt, stream=stream, **more)
        if token_tracker is not None:
            token_tracker.add_usage({"prompt_tokens": 90, "completion_tokens": 10})
        return answer


class Observed:
    """A protected LightRAG, and the tokens that its events tell."""

    def __init__(self, rag: Any, guards: Guards) -> None:
        self.rag = rag
        self.used: Counter[tuple[str, str]] = Counter()
        self.ended: list[Event] = []
        guards.events.subscribe(self._on_event, TokensUsed, QueryCompleted, DocumentProcessed)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, TokensUsed):
            self.used[event.work, event.use] += event.tokens
        else:
            self.ended.append(event)


@pytest.fixture
def provider() -> Provider:
    return Reporting()


@pytest.fixture
async def observed(provider: Provider) -> AsyncIterator[Observed]:
    settings = load_settings({"RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.01"})
    guards = Guards(settings=settings, clock=asyncio.get_running_loop().time)
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=guards)
        yield Observed(rag, guards)


def failing(times: int) -> Any:
    left = [TimeoutError("no answer") for _ in range(times)]
    return lambda kind: left.pop() if left and kind == "llm" else None


async def test_a_querys_tokens_are_those_that_its_provider_reports(observed: Observed) -> None:
    assert await observed.rag.aquery(QUESTION, BYPASS) == ANSWER
    assert observed.used == {("query", "answer"): 100}
    (query,) = observed.ended
    assert isinstance(query, QueryCompleted)
    assert (query.tokens, query.wasted_tokens) == (100, 0)


@from_1_5
async def test_a_documents_tokens_are_those_of_all_its_calls(
    observed: Observed, provider: Provider
) -> None:
    await observed.rag.ainsert("Ada founded Alderwick.")
    (document,) = observed.ended
    assert isinstance(document, DocumentProcessed)
    assert document.tokens == observed.used["document", "answer"]
    assert document.tokens > 100 * provider.count("llm")  # embeddings are estimated
    assert {work for work, _ in observed.used} == {"document"}


async def test_what_failed_attempts_may_have_cost_is_waste(
    observed: Observed, provider: Provider
) -> None:
    provider.fail = failing(2)
    assert await observed.rag.aquery(QUESTION, BYPASS) == ANSWER
    sent = len(QUESTION)  # the rig's tokenizer counts characters
    assert observed.used["query", "answer"] == 100
    assert observed.used["query", "failed"] >= sent
    assert observed.used["query", "retry"] >= sent
    (query,) = observed.ended
    assert isinstance(query, QueryCompleted)
    assert query.wasted_tokens == sum(observed.used.values()) - 100


async def test_an_attempt_that_the_provider_refused_costs_nothing(
    observed: Observed, provider: Provider
) -> None:
    errors = [ConnectionRefusedError()]
    provider.fail = lambda _: errors.pop() if errors else None
    assert await observed.rag.aquery(QUESTION, BYPASS) == ANSWER
    assert observed.used == {("query", "answer"): 100}


async def test_a_cancelled_querys_prompt_is_waste(observed: Observed, provider: Reporting) -> None:
    provider.seconds = 60.0
    query = asyncio.create_task(observed.rag.aquery(QUESTION, BYPASS))
    await asyncio.sleep(1.0)
    query.cancel()
    await asyncio.gather(query, return_exceptions=True)
    await asyncio.sleep(100.0)
    assert set(observed.used) == {("query", "cancelled")}
    assert observed.ended == []


async def test_a_streams_tokens_are_counted_at_its_end(
    observed: Observed, provider: Provider
) -> None:
    answer = await observed.rag.aquery(QUESTION, QueryParam(mode="bypass", stream=True))
    assert "".join([piece async for piece in answer]) == ANSWER
    assert observed.used == {("query", "answer"): 100}


class Silent(Provider):
    """A model that reports no tokens."""


@pytest.mark.parametrize("provider", [Silent()])
async def test_a_stream_of_unreported_tokens_is_estimated_by_its_text(observed: Observed) -> None:
    answer = await observed.rag.aquery(QUESTION, QueryParam(mode="bypass", stream=True))
    assert "".join([piece async for piece in answer]) == ANSWER
    assert len(QUESTION) + 4 <= observed.used["query", "answer"] <= len(QUESTION) + 8


async def test_a_stream_that_is_closed_early_is_waste(observed: Observed) -> None:
    answer = await observed.rag.aquery(QUESTION, QueryParam(mode="bypass", stream=True))
    await anext(answer)
    await answer.aclose()
    assert set(observed.used) == {("query", "cancelled")}


async def test_nothing_is_passed_to_a_model_whose_tokens_nothing_counts(
    provider: Reporting,
) -> None:
    given: list[Any] = []

    async def complete(prompt: str, *, token_tracker: Any = None, **more: Any) -> Any:
        given.append(token_tracker)
        return await provider.complete(prompt, **more)

    async with lightrag_on(provider, llm_model_func=complete) as rag:
        await protect(rag, registry=Guards(settings=load_settings({})))
        await rag.aquery(QUESTION, BYPASS)
    assert given == [None]


async def own(prompt: str, **kwargs: Any) -> str:
    return prompt


@pytest.mark.parametrize(
    ("function", "is_taken"),
    [
        (openai.openai_complete_if_cache, True),
        (openai.gpt_4o_mini_complete, True),
        (openai.openai_embed.func, True),
        pytest.param(
            *(ollama.ollama_model_complete, True),
            marks=from_1_5,
        ),
        (own, False),
        (len, False),
        (object(), False),
    ],
)
def test_a_tracker_is_passed_to_functions_that_take_it(function: Any, *, is_taken: bool) -> None:
    assert takes_tracker(function) is is_taken
