"""The entities and relations of documents in LightRAG's graph, found by their chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightrag_resilience.integrations.lightrag.compat import FIELD_SEPARATOR

__all__ = ["Contribution", "contributions"]

T = TypeVar("T")

_BATCH = 1000  # rows


@dataclass(slots=True)
class Contribution:
    """One document's entities by name, and its relations by their two ends."""

    entities: set[str] = field(default_factory=set)
    relations: set[tuple[str, str]] = field(default_factory=set)


async def contributions(rag: Any, chunks: Mapping[str, Collection[str]]) -> dict[str, Contribution]:
    """What each document has in the graph. Reads the whole graph and changes nothing.

    Chunks are searched where LightRAG searches them to remove a document: in the entity or
    relation, which names only its first chunks, and in the separate complete list.

    Args:
        rag: The LightRAG.
        chunks: The chunks of each document.

    Raises:
        ValueError: A storage answered for fewer rows than requested.
        Exception: Any error of a storage.
    """
    owners = _inverted(chunks)
    found = {document: Contribution() for document in chunks}
    graph = rag.chunk_entity_relation_graph
    entities = await _by_identity(await graph.get_all_nodes(), _name, owners)
    async for name, document in _shares(entities, str, rag.entity_chunks, owners):
        found[document].entities.add(name)
    relations = await _by_identity(await graph.get_all_edges(), _ends, owners)
    async for ends, document in _shares(
        relations, FIELD_SEPARATOR.join, rag.relation_chunks, owners
    ):
        found[document].relations.add(ends)
    return found


async def _by_identity(
    rows: list[dict[str, Any]],
    identity: Callable[[dict[str, Any]], T | None],
    owners: Mapping[str, Collection[str]],
) -> dict[T, set[str]]:
    """Entities or relations with those of their chunks that have an owner.

    Some databases return an edge twice, once for each direction.
    """
    found: dict[T, set[str]] = {}
    for batch in _batches(rows):
        for row in batch:
            if (key := identity(row)) is not None:
                named = (row.get("source_id") or "").split(FIELD_SEPARATOR)
                found.setdefault(key, set()).update(owners.keys() & named)
        await asyncio.sleep(0)  # a large graph must not block the event loop
    return found


async def _shares(
    found: Mapping[T, set[str]],
    key: Callable[[T], str],
    lists: Any,
    owners: Mapping[str, Collection[str]],
) -> AsyncIterator[tuple[T, str]]:
    """Each entity or relation with each document that contributed to it."""
    for batch in _batches(list(found)):
        rows = await lists.get_by_ids([key(each) for each in batch])
        for each, row in zip(batch, rows, strict=True):
            listed = row.get("chunk_ids") if isinstance(row, Mapping) else None
            for chunk in found[each] | (owners.keys() & (listed or ())):
                for document in owners[chunk]:
                    yield each, document


def _inverted(chunks: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for document, ids in chunks.items():
        for chunk in ids:
            owners.setdefault(chunk, []).append(document)
    return owners


def _batches(rows: list[T]) -> Iterator[list[T]]:
    return (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))


def _name(node: Mapping[str, Any]) -> str | None:
    return node.get("entity_id") or node.get("id")


def _ends(edge: Mapping[str, Any]) -> tuple[str, str] | None:
    one, other = sorted((edge.get("source") or "", edge.get("target") or ""))
    return (one, other) if one and other else None
