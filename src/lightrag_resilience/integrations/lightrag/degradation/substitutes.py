"""Substitutes for unavailable storages, in a query that is answered without them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from .levels import DegradationLevel

__all__ = ["with_substitutes"]

_WORD = re.compile(r"\w{3,}")
_MAX_NAMES = 24  # searched for one query


def with_substitutes(rag: Any, level: DegradationLevel) -> Any:
    """A copy of a LightRAG with substitutes for the storages that `level` goes without."""
    changed = copy.copy(rag)
    if level.by_labels:
        changed.entities_vdb = _LabelSearch(rag.chunk_entity_relation_graph, rag.entities_vdb)
        changed.chunks_vdb = _NoVectors(rag.chunks_vdb)
    if level.uncached:
        changed.llm_response_cache = _NoCache()
        changed.text_chunks = None  # LightRAG reads headings of texts from it; answers do without
    return changed


class _NoVectors:
    """A vector storage that finds nothing: LightRAG then picks texts by how often they occur."""

    def __init__(self, original: Any) -> None:
        self.cosine_better_than_threshold = original.cosine_better_than_threshold
        self.global_config = original.global_config
        self.embedding_func = None

    async def query(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return []

    async def get_vectors_by_ids(self, _: list[str]) -> dict[str, list[float]]:
        return {}


class _LabelSearch(_NoVectors):
    """Finds entities by their names in the graph instead of by similarity."""

    def __init__(self, graph: Any, original: Any) -> None:
        super().__init__(original)
        self._graph = graph

    async def query(self, query: str, top_k: int, **_: Any) -> list[dict[str, Any]]:
        found: dict[str, None] = {}
        for name in _names_in(query):
            if len(found) >= top_k:
                break
            found |= dict.fromkeys(await self._graph.search_labels(name, limit=top_k))
        return [{"entity_name": label} for label in [*found][:top_k]]


class _NoCache:
    """A cache of answers that stays empty."""

    global_config = {"enable_llm_cache": False}  # noqa: RUF012 - read only

    async def index_done_callback(self) -> None:
        """Write nothing."""


def _names_in(query: str) -> Iterator[str]:
    """Candidates for entity names: each keyword, then each word of 3 letters or more in them."""
    keywords = [part.strip() for part in query.split(",")]
    words = [word for part in keywords for word in _WORD.findall(part)]
    yield from [*dict.fromkeys(filter(None, [*keywords, *words]))][:_MAX_NAMES]
