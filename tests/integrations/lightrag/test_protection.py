"""`protect` on a real LightRAG with embedded storages; only its providers are made up."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
import tenacity
from lightrag import QueryParam
from lightrag.utils import EmbeddingFunc

from lightrag_resilience import (
    CircuitOpenError,
    Guards,
    Policy,
    Priority,
    State,
    UnsupportedCallError,
    resilient,
    with_fallbacks,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import (
    QueryFailedError,
    is_protected,
    protect,
    unprotect,
)
from lightrag_resilience.integrations.lightrag.storages import guarding
from lightrag_resilience.limits.priority import current_priority
from support.lightrag_rig import ANSWER, DIMENSIONS, Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

EMBEDDED = ["storage.doc_status", "storage.graph", "storage.kv", "storage.vector"]
DOWN = ConnectionRefusedError("the provider is down")
QUICK = {
    "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.001",
    "RESILIENCE_DEFAULT__RETRY__MAX_BACKOFF": "0.002",
    "RESILIENCE_QUERY__PATIENCE": "0",
    "RESILIENCE_DEFAULT__BREAKER__OPEN_FOR": "0.2",
}


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(QUICK | variables))


async def ask(rag: Any, question: str = "Who founded Alderwick?", mode: str = "mix") -> Any:
    return await rag.aquery(question, QueryParam(mode=mode))


async def test_a_protected_instance_ingests_and_answers() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        guards = registry()
        await protect(rag, registry=guards)
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert await ask(rag) == ANSWER
        assert [guard.name for guard in guards] == ["embedding", "llm", "rerank", *EMBEDDED]
        assert provider.count("llm") == 3  # extraction, keywords, answer
        assert provider.count("rerank") == 1


async def test_a_chain_has_its_own_guard() -> None:
    provider = Provider()
    guards = registry()

    async def openai(*args: Any, **kwargs: Any) -> str:
        raise DOWN

    openai.__module__ = "lightrag.llm.openai"
    first = resilient("llm.openai", Policy(), registry=guards)(openai)
    complete = with_fallbacks(first, provider.complete, registry=guards)
    async with lightrag_on(provider, llm_model_func=complete) as rag:
        await protect(rag, registry=guards)
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert await ask(rag) == ANSWER
    names = [guard.name for guard in guards]
    assert names == ["embedding", "llm", "llm.openai", "rerank", *EMBEDDED]
    assert guards.get("llm").breaker.state is State.CLOSED


async def test_ingest_survives_errors_that_fail_an_unprotected_one() -> None:
    provider = Provider()
    failures = {"llm": 9, "embedding": 9}

    def fail(kind: str) -> Exception | None:
        failures[kind] = failures.get(kind, 0) - 1
        return DOWN if failures[kind] >= 0 else None

    async with lightrag_on(provider) as rag:
        await protect(rag, registry=registry())
        provider.fail = fail
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert (await rag.doc_status.get_status_counts())["processed"] == 1


async def test_queries_are_served_before_ingest_when_permits_are_few() -> None:
    provider = Provider()
    levels: dict[str, set[Priority]] = {"extraction": set(), "query": set(), "embedding": set()}

    async def complete(prompt: str, **options: Any) -> Any:
        kind = "extraction" if "---Input Text---" in prompt or "<Input Text>" in prompt else "query"
        levels[kind].add(current_priority.get())
        return await provider.complete(prompt, **options)

    async def embed(texts: list[str]) -> Any:
        levels["embedding"].add(current_priority.get())
        return await provider.embed(texts)

    embedding = EmbeddingFunc(embedding_dim=DIMENSIONS, func=embed)
    async with lightrag_on(provider, llm_model_func=complete, embedding_func=embedding) as rag:
        await protect(rag, registry=registry())
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert levels["embedding"] == {Priority.BACKGROUND}
        await ask(rag)
        assert levels["extraction"] == {Priority.BACKGROUND}
        assert levels["query"] == {Priority.INTERACTIVE}
        assert levels["embedding"] == {Priority.BACKGROUND, Priority.INTERACTIVE}


async def test_ingest_gives_up_after_its_patience() -> None:
    provider = Provider(fail=lambda kind: DOWN if kind == "llm" else None)
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=registry(RESILIENCE_INGEST_PATIENCE="0.3"))
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert (await rag.doc_status.get_status_counts())["failed"] == 1


async def test_a_fatal_error_ends_an_ingest_at_once() -> None:
    provider = Provider(fail=lambda kind: ValueError("bad key") if kind == "llm" else None)
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=registry())
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert (await rag.doc_status.get_status_counts())["failed"] == 1
        assert provider.count("llm") == 1


async def test_a_query_is_rejected_with_the_time_of_the_next_probe() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        guards = registry(RESILIENCE_LLM__BREAKER__OPEN_FOR="30")
        await protect(rag, registry=guards)
        guards.get("llm").breaker.open()
        with pytest.raises(CircuitOpenError) as refusal:
            await ask(rag)
        assert refusal.value.retry_after == pytest.approx(30, abs=1)
        assert provider.calls == []


async def test_concurrent_queries_to_a_dead_provider_make_few_calls() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        guards = registry(RESILIENCE_LLM__BREAKER__OPEN_FOR="30")
        await protect(rag, registry=guards)
        provider.fail = lambda _: DOWN
        asked = (ask(rag, f"Who founded town {n}?") for n in range(20))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} <= {CircuitOpenError, QueryFailedError}
        assert len(provider.calls) <= 10
        assert guards.get("llm").breaker.state is State.OPEN


async def test_a_stream_that_breaks_off_ends_with_an_error_that_names_the_dependency() -> None:
    provider = Provider(fail=lambda kind: OSError("secret address") if kind == "stream" else None)
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=registry())
        await rag.ainsert("Ada founded Alderwick beside the river.")
        param = QueryParam(mode="mix", stream=True)
        stream = await rag.aquery("Who founded Alderwick?", param)
        assert await anext(stream) == "Ada"
        with pytest.raises(QueryFailedError) as failed:
            await anext(stream)
        assert failed.value.dependency == "llm"
        assert "secret" not in str(failed.value)
        assert isinstance(failed.value.__cause__, OSError)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_stream_that_is_closed_early_is_closed_at_its_source() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        guards = registry(RESILIENCE_LLM__CONCURRENCY__MAX_CONCURRENT="1")
        await protect(rag, registry=guards)
        await rag.ainsert("Ada founded Alderwick beside the river.")
        stream = await rag.aquery("Who founded it?", QueryParam(mode="naive", stream=True))
        assert await anext(stream) == "Ada"
        await stream.aclose()
        assert await ask(rag) == ANSWER  # its permit is free again


async def test_a_query_whose_provider_fails_raises() -> None:
    provider = Provider(fail=lambda kind: ValueError("bad key") if kind == "llm" else None)
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=registry())
        with pytest.raises(QueryFailedError) as failed:
            await ask(rag)
        assert failed.value.dependency == "llm"
        assert isinstance(failed.value.__cause__, ValueError)
        assert "bad key" not in str(failed.value)
        with pytest.raises(QueryFailedError):
            await rag.aquery_data("Who founded Alderwick?", QueryParam(mode="mix"))


async def test_a_query_that_finds_nothing_answers_as_lightrag_does() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        unprotected = await ask(rag, mode="naive")
        await protect(rag, registry=registry())
        assert await ask(rag, mode="naive") == unprotected


async def test_a_failing_rerank_leaves_the_answer_in_its_original_order() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=registry())
        await rag.ainsert("Ada founded Alderwick beside the river.")
        provider.fail = lambda kind: DOWN if kind == "rerank" else None
        assert await ask(rag) == ANSWER


async def test_a_second_protect_changes_nothing() -> None:
    async with lightrag_on(Provider()) as rag:
        await protect(rag, registry=registry())
        function = rag.embedding_func.func
        await protect(rag, registry=registry())
        assert rag.embedding_func.func is function
        assert is_protected(rag)


async def test_unprotect_restores_everything() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        guards = registry()
        await protect(rag, registry=guards)
        await unprotect(rag)
        await unprotect(rag)
        assert not is_protected(rag)
        guards.get("llm").breaker.open(open_for=600.0)  # longer than a busy machine takes
        guards.get("embedding").breaker.open(open_for=600.0)
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert await ask(rag) == ANSWER
        assert inspect.unwrap(rag.embedding_func.func) == provider.embed
        assert "aquery_llm" not in vars(rag)


async def test_a_failed_protect_undoes_its_changes_and_may_be_repeated() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        graph, rag.chunk_entity_relation_graph = rag.chunk_entity_relation_graph, object()
        strict = registry(RESILIENCE_STRICT="true")
        with pytest.raises(UnsupportedCallError, match="_graph: object is no storage"):
            await protect(rag, registry=strict)
        rag.chunk_entity_relation_graph = graph
        assert not is_protected(rag)
        assert guarding(rag.full_docs) is None
        for name in ("llm", "embedding"):
            strict.get(name).breaker.open()
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert await ask(rag) == ANSWER
        guards = registry(RESILIENCE_DEFAULT__BREAKER__OPEN_FOR="300")
        await protect(rag, registry=guards)
        guards.get("llm").breaker.open()
        guards.get("embedding").breaker.open()
        with pytest.raises(CircuitOpenError):
            await ask(rag)


async def test_a_cancelled_protect_undoes_its_changes() -> None:
    provider, guards = Provider(), registry()
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def embed(texts: list[str]) -> Any:
        begun.set()
        await may_end.wait()
        return await provider.embed(texts)

    embedding = EmbeddingFunc(embedding_dim=DIMENSIONS, func=embed)
    async with lightrag_on(provider, embedding_func=embedding) as rag:
        if not hasattr(rag, "aupdate_llm_role_config"):
            pytest.skip("LightRAG 1.4 ends its queues with the work they hold")
        under_way = asyncio.create_task(rag.embedding_func(["a text"]))
        await begun.wait()
        queued = rag.embedding_func.func
        protecting = asyncio.create_task(protect(rag, registry=guards))
        await asyncio.wait([protecting], timeout=0.2)  # the old queue cannot end
        assert rag.embedding_func.func is not queued
        protecting.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await protecting
        assert not is_protected(rag)
        assert len(await under_way) == 1
        before = guards.get("embedding").breaker.snapshot().calls
        assert len(await rag.embedding_func(["another text"])) == 1
        assert guards.get("embedding").breaker.snapshot().calls == before


@pytest.mark.parametrize("degrade", ["false", "true"])
async def test_a_method_that_its_user_replaced_stays_in_use(degrade: str) -> None:
    async with lightrag_on(Provider()) as rag:
        original, traced = rag.aquery_llm, list[str]()

        async def trace(question: str, *args: Any, **kwargs: Any) -> Any:
            traced.append(question)
            return await original(question, *args, **kwargs)

        rag.aquery_llm = trace
        await protect(rag, registry=registry(RESILIENCE_DEGRADE=degrade))
        await ask(rag, "while protected")
        await unprotect(rag)
        assert rag.aquery_llm is trace
        assert traced == ["while protected"]


async def test_inner_retries_yield_while_any_instance_is_protected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = tenacity.stop_after_attempt(3)
    function: Any = tenacity.retry(stop=stop)(lambda: None)
    late = ModuleType("lightrag.llm.imported_late")
    vars(late)["complete"] = function
    async with lightrag_on(Provider()) as one, lightrag_on(Provider()) as other:
        await protect(one, registry=registry())
        monkeypatch.setitem(sys.modules, late.__name__, late)
        await protect(other, registry=registry())
        await unprotect(one)
        assert function.retry.stop is not stop
        await unprotect(other)
        assert function.retry.stop is stop


async def test_a_role_that_is_changed_later_stays_protected() -> None:
    provider, other = Provider(), Provider()
    async with lightrag_on(provider) as rag:
        if not hasattr(rag, "aupdate_llm_role_config"):
            pytest.skip("LightRAG 1.4 has no roles")
        guards = registry()
        await protect(rag, registry=guards)
        await rag.aupdate_llm_role_config("query", model_func=other.complete)
        guards.get("llm").breaker.open()
        with pytest.raises(CircuitOpenError):
            await rag.role_llm_funcs["query"]("Who founded Alderwick?")
        assert other.calls == []


async def test_the_guarded_functions_survive_a_deep_copy() -> None:
    async with lightrag_on(Provider()) as rag:
        await protect(rag, registry=registry())
        assert copy.deepcopy(rag.rerank_model_func) is rag.rerank_model_func
        assert dataclasses.asdict(rag)["llm_model_func"] is not None


async def test_all_storages_embed_through_the_guard() -> None:
    async with lightrag_on(Provider()) as rag:
        await protect(rag, registry=registry())
        for storage in (rag.entities_vdb, rag.relationships_vdb, rag.chunks_vdb):
            assert storage.embedding_func is rag.embedding_func


async def test_an_instance_without_rerank_is_protected_too() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        queue, rag.rerank_model_func = rag.rerank_model_func, None
        await protect(rag, registry=registry())
        assert await ask(rag, mode="naive") is not None
        await unprotect(rag)
        rag.rerank_model_func = queue


async def test_a_streaming_answer_is_one_guarded_call() -> None:
    provider = Provider()

    async def complete(prompt: str, **options: Any) -> Any:
        if options.get("stream"):
            return words()
        return await provider.complete(prompt)

    async def words() -> Any:
        for word in ("Ada ", "founded ", "Alderwick."):
            yield word

    async with lightrag_on(provider, llm_model_func=complete) as rag:
        guards = registry()
        await protect(rag, registry=guards)
        await rag.ainsert("Ada founded Alderwick beside the river.")
        before = guards.get("llm").breaker.snapshot().calls
        stream = await rag.aquery("Who founded it?", QueryParam(mode="mix", stream=True))
        assert "".join([word async for word in stream]) == ANSWER
        assert guards.get("llm").breaker.snapshot().calls == before + 2  # keywords, answer


async def test_an_object_that_is_no_lightrag_is_a_clear_error() -> None:
    with pytest.raises(UnsupportedCallError, match=r"LightRAG of version 1\.4\.16 or later"):
        await protect(object())
