"""How long a query of a protected LightRAG waits for what is down, and how long it may take."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from lightrag import QueryParam
from lightrag.utils import EmbeddingFunc

from lightrag_resilience import CircuitOpenError, DeadlineExceededError, Guards, State
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import protect
from lightrag_resilience.integrations.lightrag.work.query_errors import QueryFailedError
from support.guards import outcomes
from support.lightrag_rig import ANSWER, DIMENSIONS, Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

DOWN = ConnectionRefusedError("the provider is down")
QUICK = {
    "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.01",
    "RESILIENCE_DEFAULT__BREAKER__OPEN_FOR": "0.3",
    "RESILIENCE_RECOVERY": "false",
}
TEXT = "Ada founded Alderwick beside the river."


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(QUICK | variables))


async def ask(rag: Any, question: str = "Who founded Alderwick?") -> Any:
    return await rag.aquery(question, QueryParam(mode="mix"))


def fail_all(_: str) -> Exception:
    return DOWN


async def test_queries_of_a_short_outage_are_answered() -> None:
    provider = Provider()
    async with lightrag_on(provider, enable_llm_cache=False) as rag:
        await protect(rag, registry=registry())
        await rag.ainsert(TEXT)
        provider.fail = fail_all
        asyncio.get_running_loop().call_later(1.5, setattr, provider, "fail", lambda _: None)
        found = await outcomes(ask(rag) for _ in range(5))
    assert found == [ANSWER] * 5


async def test_many_queries_to_a_dead_provider_make_few_calls() -> None:
    provider = Provider()
    guards = registry(
        RESILIENCE_QUERY__PATIENCE="1",
        RESILIENCE_DEFAULT__BREAKER__OPEN_FOR="30",
        RESILIENCE_DEFAULT__BREAKER__BACKGROUND_PROBE="false",
    )
    async with lightrag_on(provider, enable_llm_cache=False) as rag:
        await protect(rag, registry=guards)
        await rag.ainsert(TEXT)
        provider.fail, provider.calls = fail_all, []
        found = await outcomes(ask(rag) for _ in range(20))
    assert all(isinstance(each, CircuitOpenError) for each in found)
    assert provider.count("llm") <= 12


async def test_a_query_repeats_no_call_where_retries_are_turned_off() -> None:
    provider = Provider()
    guards = registry(
        RESILIENCE_LLM__RETRY__ATTEMPTS="1", RESILIENCE_LLM__BREAKER__MODE="metrics-only"
    )
    async with lightrag_on(provider, enable_llm_cache=False) as rag:
        await protect(rag, registry=guards)
        await rag.ainsert(TEXT)
        provider.fail, provider.calls = lambda kind: DOWN if kind == "llm" else None, []
        with pytest.raises(QueryFailedError):
            await ask(rag)
    assert provider.count("llm") == 1


async def test_a_query_in_an_old_outage_is_refused_at_once() -> None:
    provider = Provider()
    guards = registry(RESILIENCE_QUERY__MAX_OUTAGE="0", RESILIENCE_QUERY__PATIENCE="600")
    async with lightrag_on(provider, enable_llm_cache=False) as rag:
        await protect(rag, registry=guards)
        await rag.ainsert(TEXT)
        guards.get("llm").breaker.open(open_for=300.0)
        provider.calls = []
        with pytest.raises(CircuitOpenError):
            await asyncio.wait_for(ask(rag), 30.0)
    assert provider.count("llm") == 0


async def test_a_query_waits_no_time_for_what_it_can_do_without() -> None:
    provider = Provider()
    guards = registry(RESILIENCE_QUERY__PATIENCE="600")
    async with lightrag_on(provider, enable_llm_cache=False) as rag:
        await protect(rag, registry=guards)
        await rag.ainsert(TEXT)
        guards.get("rerank").breaker.open(open_for=300.0)
        assert await asyncio.wait_for(ask(rag), 30.0) == ANSWER


async def test_a_hanging_embedding_ends_a_query_at_its_deadline_and_is_not_blamed() -> None:
    provider = Provider()
    hangs = asyncio.Event()

    async def embed(texts: list[str]) -> Any:
        if hangs.is_set():
            await asyncio.sleep(3600.0)
        return await provider.embed(texts)

    guards = registry(
        RESILIENCE_QUERY__TIMEOUT="1", RESILIENCE_EMBEDDING__BREAKER__CONSECUTIVE_FAILURES="1"
    )
    embedding = EmbeddingFunc(embedding_dim=DIMENSIONS, func=embed)
    async with lightrag_on(provider, embedding_func=embedding, enable_llm_cache=False) as rag:
        await protect(rag, registry=guards)
        await rag.ainsert(TEXT)
        hangs.set()
        began = time.monotonic()
        # More than LightRAG's queue runs at once: the others wait for their turn in it.
        found = await outcomes(ask(rag) for _ in range(12))
        took = time.monotonic() - began
        hangs.clear()
        assert await ask(rag) == ANSWER
    assert all(isinstance(each, DeadlineExceededError) for each in found), found
    assert {each.dependency for each in found} == {"embedding"}
    assert "the 1 s that a query may take (RESILIENCE_QUERY__TIMEOUT)" in str(found[0])
    assert 0.9 < took < 20.0
    for guard in guards:
        assert (guard.breaker.state, guard.breaker.snapshot().failed) == (State.CLOSED, 0)
