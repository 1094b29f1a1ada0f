"""The contributions of documents to a graph, for storages of each shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag_resilience.integrations.lightrag.recovery import graph_contributions as module
from lightrag_resilience.integrations.lightrag.recovery.anchors import RecoveryAnchors
from lightrag_resilience.integrations.lightrag.recovery.graph_contributions import (
    Contribution,
    contributions,
)

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

Row = dict[str, Any]


class Lists:
    """Complete lists of chunks, by the names of entities or relations."""

    def __init__(self, **chunks: list[str]) -> None:
        self._chunks = chunks
        self.asked: list[list[str]] = []

    async def get_by_ids(self, ids: list[str]) -> list[Row | None]:
        self.asked.append(ids)
        found = (self._chunks.get(name) for name in ids)
        return [None if chunks is None else {"chunk_ids": chunks} for chunks in found]


class Graph:
    def __init__(self, nodes: list[Row], edges: list[Row]) -> None:
        self._nodes, self._edges = nodes, edges

    async def get_all_nodes(self) -> list[Row]:
        return self._nodes

    async def get_all_edges(self) -> list[Row]:
        return self._edges


def storages(
    nodes: list[Row], edges: list[Row], entities: Any = None, relations: Any = None
) -> Any:
    return SimpleNamespace(
        chunk_entity_relation_graph=Graph(nodes, edges),
        entity_chunks=entities or Lists(),
        relation_chunks=relations or Lists(),
    )


async def test_a_document_contributes_where_one_of_its_chunks_is_named() -> None:
    rag = storages(
        [
            {"entity_id": "Ada", "source_id": "c1<SEP>c9"},
            {"id": "Bob", "source_id": "c2"},
            {"entity_id": "Cay", "source_id": "c9"},
            {"entity_id": "Dan"},
            {"source_id": "c1"},
        ],
        [
            {"source": "Bob", "target": "Ada", "source_id": "c1<SEP>c2"},
            {"source": "Ada", "target": "Bob", "source_id": "c1<SEP>c2"},
            {"source": "Cay", "target": "Ada", "source_id": None},
            {"source": "Cay", "source_id": "c1"},
        ],
    )
    assert await contributions(rag, {"one": ["c1"], "two": ["c2"], "three": ["c3"]}) == {
        "one": Contribution({"Ada"}, {("Ada", "Bob")}),
        "two": Contribution({"Bob"}, {("Ada", "Bob")}),
        "three": Contribution(),
    }


async def test_a_chunk_counts_that_only_the_complete_list_names() -> None:
    rag = storages(
        [{"entity_id": "Ada", "source_id": "c1"}],
        [{"source": "Bob", "target": "Ada", "source_id": "c1"}],
        Lists(Ada=["c1", "c7"]),
        Lists(**{"Ada<SEP>Bob": ["c7"]}),
    )
    assert await contributions(rag, {"seven": ["c7"]}) == {
        "seven": Contribution({"Ada"}, {("Ada", "Bob")})
    }


async def test_documents_may_share_a_chunk() -> None:
    rag = storages([{"entity_id": "Ada", "source_id": "c1"}], [])
    found = await contributions(rag, {"one": ["c1"], "two": ["c1"]})
    assert found == {"one": Contribution({"Ada"}), "two": Contribution({"Ada"})}


async def test_a_large_graph_is_read_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    names = [f"N{number}" for number in range(5)]
    lists = Lists()
    rag = storages([{"entity_id": name, "source_id": "c1"} for name in names], [], lists)
    found = await contributions(rag, {"one": ["c1"]})
    assert found["one"].entities == set(names)
    assert lists.asked == [["N0", "N1"], ["N2", "N3"], ["N4"]]


async def test_a_storage_that_omits_rows_is_an_error() -> None:
    class Shorter(Lists):
        async def get_by_ids(self, ids: list[str]) -> list[Row | None]:
            return (await super().get_by_ids(ids))[1:]

    rag = storages([{"entity_id": "Ada", "source_id": "c1"}], [], Shorter())
    with pytest.raises(ValueError, match="shorter"):
        await contributions(rag, {"one": ["c1"]})


async def test_a_lightrag_without_anchors_is_unchanged() -> None:
    rag: Any = SimpleNamespace()
    assert list(RecoveryAnchors(rag).method_overrides()) == []
    assert await RecoveryAnchors(rag).rebuild(["one"]) == set()
