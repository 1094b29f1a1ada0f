"""A protected LightRAG and a bare one, with no fault: the same documents, graph and answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag import QueryParam

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import protect
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag, pytest.mark.no_cover]

TEXTS = [f"Ada founded Alderwick beside the river, as {number} others did." for number in range(8)]
QUESTIONS = [f"Who founded Alderwick in the year {1200 + number}?" for number in range(20)]
MODES = ["local", "global", "hybrid", "mix", "naive", "bypass"]
CHANGING = {"created_at", "updated_at", "response_time", "create_time", "update_time", "timestamp"}


async def life(*, protected: bool, degrade: str = "false") -> dict[str, Any]:
    """Ingest, and ask twenty questions in every mode: all that a user can see of it."""
    provider = Provider()
    async with lightrag_on(provider) as rag:
        if protected:
            variables = {"RESILIENCE_DEGRADE": degrade, "RESILIENCE_RECOVERY": "false"}
            await protect(rag, registry=Guards(settings=load_settings(variables)))
        for number, text in enumerate(TEXTS):
            await rag.ainsert(text, ids=f"doc-{number}", file_paths=f"{number}.txt")
        graph = rag.chunk_entity_relation_graph
        answers = [
            await rag.aquery_llm(question, QueryParam(mode=mode, stream=False))
            for mode in MODES
            for question in QUESTIONS
        ]
        plain = [await rag.aquery(QUESTIONS[0], QueryParam(mode=mode)) for mode in MODES[:-1]]
        data = [await rag.aquery_data(QUESTIONS[0], QueryParam(mode=mode)) for mode in MODES[:-1]]
        return {
            "documents": await rag.full_docs.get_by_ids([f"doc-{n}" for n in range(len(TEXTS))]),
            "nodes": sorted(await graph.get_all_nodes(), key=repr),
            "edges": sorted(await graph.get_all_edges(), key=repr),
            "statuses": await rag.doc_status.get_status_counts(),
            "answers": copy.deepcopy(answers),
            "plain": plain,
            "data": data,
            "calls": {kind: provider.count(kind) for kind in ("llm", "embedding")},
        }


def lasting(found: Any) -> Any:
    """Without the time of day."""
    if isinstance(found, dict):
        return {key: lasting(value) for key, value in found.items() if key not in CHANGING}
    return [lasting(each) for each in found] if isinstance(found, list | tuple) else found


@pytest.mark.parametrize("degrade", ["false", "true"])
async def test_without_a_fault_protected_and_plain_answers_are_equal(degrade: str) -> None:
    bare = lasting(await life(protected=False))
    protected = lasting(await life(protected=True, degrade=degrade))
    assert len(bare["answers"]) == len(MODES) * len(QUESTIONS)
    for part, expected in bare.items():
        assert protected[part] == expected, part
