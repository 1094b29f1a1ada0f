"""A real LightRAG whose provider answers 200 with what is no answer, over real HTTP.

Most cases run in one mixture. ``INVALID_ANSWERS=20`` runs each fault by itself with 20 documents.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

pytest.importorskip("lightrag.llm_roles")  # LightRAG 1.5: the rig has roles

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.demo.corpus import facts
from lightrag_resilience.demo.rig import Rig, build_rig
from lightrag_resilience.events import AttemptFailed, StateChanged
from lightrag_resilience.testing import Fault
from lightrag_resilience.testing.faults import INVALID
from lightrag_resilience.testing.invalid_answers import HTML_PAGE

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

DOCUMENTS = int(os.environ.get("INVALID_ANSWERS", "0"))
OF_INGEST = sorted(INVALID - {"bad_rank"})
MIXTURE = [Fault.invalid(kind, share=0.06) for kind in OF_INGEST]  # type: ignore[arg-type]
VECTORS = ("chunks_vdb", "entities_vdb", "relationships_vdb")


@contextlib.asynccontextmanager
async def ingested(
    faults: Sequence[Fault], *, protected: bool = True, documents: int = 6
) -> AsyncIterator[tuple[Rig, list[Any]]]:
    guards = Guards(settings=load_settings({})) if protected else None
    events: list[Any] = []
    if guards is not None:
        guards.events.subscribe(events.append)
    async with build_rig(
        protected=protected, seed=7, guards=guards, entity_extraction_use_json=True
    ) as rig:
        rig.provider.set_faults(faults)
        rig.provider.begin()
        with warnings.catch_warnings(action="ignore"):  # vectors of zeros have no direction
            await rig.ingest(facts(documents))
        yield rig, events


async def content(rig: Rig) -> dict[str, Any]:
    """The graph, and all vectors to four digits."""
    graph = rig.rag.chunk_entity_relation_graph
    found: dict[str, Any] = {
        "nodes": {it["id"]: it["description"] for it in await graph.get_all_nodes()},
        "edges": {frozenset((it["source"], it["target"])) for it in await graph.get_all_edges()},
    }
    for name in VECTORS:
        stored = await getattr(rig.rag, name).client_storage
        ids = [row["__id__"] for row in stored["data"]]
        vectors = stored["matrix"].round(4).tolist()
        found[name] = dict(zip(ids, vectors, strict=True))
    return found


async def without_fault(documents: int = 6) -> dict[str, Any]:
    async with ingested([], protected=False, documents=documents) as (rig, _):
        return await content(rig)


async def test_a_mixture_of_invalid_answers_costs_no_document_and_no_vector() -> None:
    expected = await without_fault()
    async with ingested(MIXTURE) as (rig, events):
        assert await rig.documents_by_status() == {"processed": 6}
        assert await content(rig) == expected
        seen = {call.outcome for call in rig.provider.calls} & INVALID
    failed = [event for event in events if isinstance(event, AttemptFailed)]
    assert len(seen) > 3
    assert {event.dependency for event in failed} == {"llm.openai", "embedding.openai"}
    assert {event.error for event in failed} == {"InvalidResultError"}
    async with ingested(MIXTURE, protected=False) as (alone, _):
        assert await content(alone) != expected


@pytest.mark.parametrize("kind", ["html_200", "nan"])
async def test_an_outage_by_invalid_answers_opens_the_circuit_and_costs_no_document(
    kind: Any,
) -> None:
    expected = await without_fault(3)
    outage = Fault.invalid(kind, end=2.0)
    async with ingested([outage], documents=3) as (rig, events):
        assert await rig.documents_by_status() == {"processed": 3}
        assert await content(rig) == expected
    opened = [it for it in events if isinstance(it, StateChanged) and it.new == "open"]
    is_page = kind == "html_200"
    assert {it.dependency for it in opened} == {"llm.openai" if is_page else "embedding.openai"}
    why = "with an HTML page" if is_page else "with vectors that are not finite"
    assert opened[0].reason.endswith(f"InvalidResultError ({why})")


async def test_a_query_is_answered_though_the_reranker_ranks_what_it_was_not_sent() -> None:
    async with ingested([], documents=2) as (rig, events):
        rig.provider.set_faults([Fault.invalid("bad_rank")])
        assert await rig.ask(facts(2)[0].question(0))
    assert {it.dependency for it in events if isinstance(it, AttemptFailed)} == {"rerank.jina"}


async def test_a_page_in_the_cache_of_answers_is_not_served_and_not_kept() -> None:
    async with ingested([], documents=1) as (rig, _):
        cache = rig.rag.llm_response_cache
        key = "default:extract:a-page"
        row = {"return": HTML_PAGE, "cache_type": "extract", "original_prompt": "Extract."}
        await cache.upsert({key: row})
        assert await cache.get_by_id(key) is None
        assert await cache.filter_keys({key}) == {key}


@pytest.mark.skipif(not DOCUMENTS, reason="minutes: INVALID_ANSWERS=20 runs it")
@pytest.mark.parametrize("where", [{"share": 0.3}, {"end": 4.0}], ids=["share", "outage"])
@pytest.mark.parametrize("kind", OF_INGEST)
async def test_no_fault_by_itself_costs_a_document(kind: Any, where: dict[str, Any]) -> None:
    expected = await without_fault(DOCUMENTS)
    async with ingested([Fault.invalid(kind, **where)], documents=DOCUMENTS) as (rig, events):
        assert await rig.documents_by_status() == {"processed": DOCUMENTS}
        assert await content(rig) == expected
    assert any(isinstance(event, AttemptFailed) for event in events)
