"""Answers of a protected LightRAG while a dependency is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag import QueryParam

from lightrag_resilience import Guards, ResilienceError
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import QueryFailedError, protect, unprotect
from support.lightrag_rig import ANSWER, Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

DOWN = ConnectionRefusedError("the provider is down")
QUESTION = "Who founded Alderwick?"
TEXT = "Ada founded Alderwick beside the river."


def registry(**variables: str) -> Guards:
    return Guards(
        settings=load_settings(
            {
                "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.001",
                "RESILIENCE_DEFAULT__RETRY__MAX_BACKOFF": "0.002",
                "RESILIENCE_QUERY__PATIENCE": "0",
                "RESILIENCE_DEGRADE": "true",
                **variables,
            }
        )
    )


class Failing:
    """Which kinds of calls fail, and how."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}

    def __call__(self, kind: str) -> Exception | None:
        return self.errors.get(kind)


@pytest.fixture
def failing() -> Failing:
    return Failing()


@pytest.fixture
async def rag(failing: Failing, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    variables = getattr(request, "param", {})
    async with lightrag_on(Provider(fail=failing)) as rag:
        await protect(rag, registry=registry(**variables))
        await rag.ainsert(TEXT, ids=["doc-1"])
        await rag.aclear_cache()
        yield rag
        failing.errors.clear()
        await unprotect(rag)


async def ask(rag: Any, mode: str = "mix", **changes: Any) -> Any:
    return await rag.aquery_llm(QUESTION, QueryParam(mode=mode, **changes))


def content(answer: Any) -> str:
    return str(answer["llm_response"]["content"])


async def test_an_answer_from_all_dependencies_has_no_mark(rag: Any) -> None:
    answer = await ask(rag)
    assert content(answer) == ANSWER
    assert "left_out" not in answer["metadata"]
    assert await rag.aquery(QUESTION) == ANSWER


@pytest.mark.parametrize("mode", ["mix", "hybrid", "local", "global", "naive"])
async def test_without_the_model_the_context_is_the_answer(
    rag: Any, failing: Failing, mode: str
) -> None:
    failing.errors["llm"] = DOWN
    answer = await ask(rag, mode)
    first, _, rest = content(answer).partition("\n\n")
    assert first == "[No answer, but what was found to answer from: 'llm' is unavailable.]"
    assert "Ada founded Alderwick" in rest
    assert rest != ANSWER
    assert [mark["dependency"] for mark in answer["metadata"]["left_out"]] == ["llm"]
    assert answer["llm_response"]["llm_generated"] is False


@pytest.mark.parametrize("mode", ["mix", "naive"])
async def test_without_embeddings_entities_are_found_by_their_names(
    rag: Any, failing: Failing, mode: str
) -> None:
    failing.errors["embedding"] = DOWN
    answer = await ask(rag, mode)
    note = "[Answered without similarity search: 'embedding' is unavailable.]"
    assert content(answer) == f"{note}\n\n{ANSWER}"
    assert {entity["entity_name"] for entity in answer["data"]["entities"]} >= {"Alderwick"}
    assert answer["data"]["chunks"][0]["content"] == TEXT


async def test_without_model_and_embeddings_the_context_of_the_graph_is_the_answer(
    rag: Any, failing: Failing
) -> None:
    failing.errors |= {"embedding": DOWN, "llm": DOWN}
    answer = await ask(rag)
    assert "Ada founded Alderwick" in content(answer)
    assert {mark["dependency"] for mark in answer["metadata"]["left_out"]} == {"embedding", "llm"}
    assert "'embedding'" in content(answer)
    assert "'llm'" in content(answer)


async def lost() -> None:
    raise DOWN  # the error that providers raise here too: the guard must still find its dependency


async def test_without_the_graph_similar_texts_answer(rag: Any) -> None:
    rag.chunk_entity_relation_graph._get_graph = lost
    answer = await ask(rag)
    note = "[Answered without the knowledge graph: 'storage.graph' is unavailable.]"
    assert content(answer) == f"{note}\n\n{ANSWER}"
    assert answer["data"]["entities"] == []
    assert answer["data"]["chunks"][0]["content"] == TEXT


async def test_without_the_vectors_entities_are_found_by_their_names(rag: Any) -> None:
    for storage in (rag.entities_vdb, rag.relationships_vdb, rag.chunks_vdb):
        storage._get_client = lost
    answer = await ask(rag)
    note = "[Answered without similarity search: 'storage.vector' is unavailable.]"
    assert content(answer) == f"{note}\n\n{ANSWER}"
    assert {entity["entity_name"] for entity in answer["data"]["entities"]} >= {"Alderwick"}


async def test_without_graph_and_vectors_there_is_no_answer(rag: Any) -> None:
    rag.chunk_entity_relation_graph._get_graph = lost
    for storage in (rag.entities_vdb, rag.relationships_vdb, rag.chunks_vdb):
        storage._get_client = lost
    with pytest.raises(ResilienceError) as failed:
        await ask(rag)
    assert getattr(failed.value, "dependency", "") in {"storage.graph", "storage.vector"}


async def test_without_the_texts_similar_ones_answer(rag: Any) -> None:
    for storage in (rag.text_chunks, rag.llm_response_cache):
        storage._storage_lock = Broken()
    answer = await ask(rag)
    assert content(answer).endswith(ANSWER)
    assert "'storage.kv' is unavailable" in content(answer)


class Broken:
    async def __aenter__(self) -> None:
        raise DOWN

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError


async def test_an_answer_without_its_reranker_is_marked(rag: Any, failing: Failing) -> None:
    failing.errors["rerank"] = DOWN
    answer = await ask(rag)
    assert content(answer) == ANSWER
    assert [mark["dependency"] for mark in answer["metadata"]["left_out"]] == ["rerank"]


async def test_a_stream_begins_with_the_note(rag: Any, failing: Failing) -> None:
    failing.errors["embedding"] = DOWN
    stream = await rag.aquery(QUESTION, QueryParam(mode="mix", stream=True))
    text = "".join([item async for item in stream])
    assert text == f"[Answered without similarity search: 'embedding' is unavailable.]\n\n{ANSWER}"


async def test_an_empty_partial_answer_raises_the_first_error(rag: Any, failing: Failing) -> None:
    failing.errors["embedding"] = DOWN
    with pytest.raises(ResilienceError):
        await rag.aquery_llm(
            "What is unknown?", QueryParam(mode="mix", ll_keywords=["zzz"], hl_keywords=["yyy"])
        )


async def test_a_wrong_key_is_raised_and_not_degraded(rag: Any, failing: Failing) -> None:
    failing.errors["llm"] = ValueError("bad key")
    with pytest.raises(QueryFailedError):
        await ask(rag)


async def test_a_bypass_query_fails_without_the_model(rag: Any, failing: Failing) -> None:
    failing.errors["llm"] = DOWN
    with pytest.raises(ResilienceError):
        await ask(rag, "bypass")


async def test_data_is_found_without_a_model(rag: Any, failing: Failing) -> None:
    failing.errors["llm"] = DOWN
    data = await rag.aquery_data(QUESTION, QueryParam(mode="mix"))
    assert data["data"]["chunks"][0]["content"] == TEXT
    assert [mark["dependency"] for mark in data["metadata"]["left_out"]] == ["llm"]


@pytest.mark.parametrize("rag", [{"RESILIENCE_STALE_ANSWERS": "600"}], indirect=True)
async def test_a_stale_answer_is_preferred_to_a_degraded_one(rag: Any, failing: Failing) -> None:
    await ask(rag)
    failing.errors["embedding"] = DOWN
    answer = await ask(rag)
    note = "[Answer of a moment ago: 'embedding' is unavailable.]"
    assert content(answer) == f"{note}\n\n{ANSWER}"
    assert answer["metadata"]["stale_for"] < 60
    other = await ask(rag, top_k=7)
    assert "stale_for" not in other["metadata"]


async def is_old(answer: Awaitable[Any]) -> bool:
    """Whether it is an answer of the past; none at all is not."""
    try:
        return "stale_for" in (await answer)["metadata"]
    except ResilienceError:
        return False


async def delete_document(rag: Any) -> None:
    assert (await rag.adelete_by_doc_id("doc-1")).status == "success"


async def delete_entity(rag: Any) -> None:
    assert (await rag.adelete_by_entity("Ada")).status == "success"


async def delete_relation(rag: Any) -> None:
    assert (await rag.adelete_by_relation("Ada", "Alderwick")).status == "success"


async def clear_cache(rag: Any) -> None:
    await rag.aclear_cache()


async def clear_all(rag: Any) -> None:
    """As LightRAG's server does it."""
    for storage in (rag.full_docs, rag.text_chunks, rag.chunks_vdb, rag.doc_status):
        await storage.drop()


@pytest.mark.parametrize(
    "delete", [delete_document, delete_entity, delete_relation, clear_cache, clear_all]
)
@pytest.mark.parametrize("rag", [{"RESILIENCE_STALE_ANSWERS": "600"}], indirect=True)
async def test_a_deletion_clears_all_stale_answers(
    rag: Any, failing: Failing, delete: Callable[[Any], Awaitable[None]]
) -> None:
    await ask(rag)
    data = await rag.aquery_data(QUESTION, QueryParam(mode="mix"))
    assert data["status"] == "success"
    await delete(rag)
    failing.errors |= {"embedding": DOWN, "llm": DOWN}
    assert not await is_old(ask(rag))
    assert not await is_old(rag.aquery_data(QUESTION, QueryParam(mode="mix")))


@pytest.mark.parametrize("rag", [{"RESILIENCE_STALE_ANSWERS": "600"}], indirect=True)
async def test_an_answer_under_way_at_a_deletion_is_not_cached(
    rag: Any, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    query = rag.chunks_vdb.query

    async def slow(*args: Any, **kwargs: Any) -> Any:
        found = await query(*args, **kwargs)
        begun.set()
        await may_end.wait()
        return found

    monkeypatch.setattr(rag.chunks_vdb, "query", slow)
    under_way = asyncio.create_task(ask(rag, "naive"))
    await begun.wait()
    await delete_entity(rag)
    may_end.set()
    assert content(await under_way) == ANSWER
    failing.errors["embedding"] = DOWN
    assert not await is_old(ask(rag, "naive"))


@pytest.mark.parametrize(
    "rag",
    [{"RESILIENCE_STALE_ANSWERS": "600", "RESILIENCE_EMBEDDING__BREAKER__MODE": "metrics-only"}],
    indirect=True,
)
async def test_an_answer_is_dropped_once_a_later_query_finds_nothing(
    rag: Any, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(rag, "naive")

    async def nothing(*_: Any, **__: Any) -> list[Any]:
        return []

    with monkeypatch.context() as empty:
        empty.setattr(rag.chunks_vdb, "query", nothing)
        assert (await ask(rag, "naive"))["status"] == "failure"
    failing.errors["embedding"] = DOWN
    assert not await is_old(ask(rag, "naive"))
    failing.errors.clear()
    await ask(rag, "naive")
    failing.errors["embedding"] = DOWN
    assert await is_old(ask(rag, "naive"))


@pytest.mark.parametrize("rag", [{"RESILIENCE_DEGRADE": "false"}], indirect=True)
async def test_a_query_fails_where_degradation_is_off(rag: Any, failing: Failing) -> None:
    failing.errors["llm"] = DOWN
    with pytest.raises(ResilienceError):
        await ask(rag)
