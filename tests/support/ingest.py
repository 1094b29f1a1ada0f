"""Ingest documents into a LightRAG while its storage fails, and compare the outcomes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any

from support.backends import Reader, StorageSet
from support.storage_operations import plain

PATIENCE = 120.0  # seconds for an ingest, with all waits for its storages
SEPARATOR = "<SEP>"


def document(number: int) -> str:
    """A text that shares a name with the next one, so that entities are merged."""
    one, other = (f"N{chr(ord('A') + n) * 4}" for n in (number, number + 1))
    return f"Document {number}: {one} lives beside {other}."


@dataclass
class Outcome:
    """What is in the storages after an ingest."""

    seconds: float
    statuses: Counter[str]
    documents: dict[str, Any] = field(repr=False)
    graph: dict[str, Any] = field(repr=False)
    vectors: dict[str, Any] = field(repr=False)
    errors: set[str] = field(default_factory=set)

    @property
    def content(self) -> tuple[Any, ...]:
        """What two ingests of the same documents must have in common."""
        return self.statuses, self.documents, self.graph, self.vectors


@dataclass
class Fault:
    """A fault of the storage's server after a number of model calls."""

    begin: Callable[[], None]
    end: Callable[[], None]
    seconds: float
    after: int = 4  # calls of the model

    async def happen(self) -> None:
        await asyncio.to_thread(self.begin)
        await asyncio.sleep(self.seconds)
        await asyncio.to_thread(self.end)


async def ingest(
    storage_set: StorageSet,
    count: int,
    fault: Fault | None = None,
    prepare: Callable[[Any], Awaitable[Any]] | None = None,
) -> Outcome:
    """Ingest `count` documents, with the fault in the middle.

    Raises:
        TimeoutError: It did not end in 120 s.
    """
    faults: list[asyncio.Task[None]] = []
    reader = Reader()

    def watch(_: str) -> None:
        if fault is not None and not faults and reader.count("llm") >= fault.after:
            faults.append(asyncio.ensure_future(fault.happen()))

    reader.fail = watch
    began = time.monotonic()
    error = ""
    async with storage_set.lightrag(reader) as rag:
        if prepare is not None:
            await prepare(rag)
        try:
            async with asyncio.timeout(PATIENCE):
                texts = [document(number) for number in range(count)]
                names = [f"{number}.txt" for number in range(count)]
                await rag.ainsert(texts, ids=names, file_paths=names)
        except TimeoutError:
            raise
        except Exception as failed:  # noqa: BLE001 - part of the outcome
            error = f"ainsert: {type(failed).__name__}: {failed}"
        seconds = time.monotonic() - began
        await asyncio.gather(*faults)
        outcome = await outcome_of(rag, count, seconds)
    outcome.errors |= {error} - {""}
    return outcome


async def outcome_of(rag: Any, count: int, seconds: float) -> Outcome:
    names = [f"{number}.txt" for number in range(count)]
    rows = await rag.doc_status.get_by_ids(names)
    found = [row for row in rows if row]
    chunks = sorted(chunk for row in found for chunk in row.get("chunks_list") or ())
    texts = await rag.full_docs.get_by_ids(names)
    graph = rag.chunk_entity_relation_graph
    nodes, edges = await graph.get_all_nodes(), await graph.get_all_edges()
    return Outcome(
        seconds=seconds,
        statuses=Counter(str(getattr(row["status"], "value", row["status"])) for row in found),
        documents={name: text and text["content"] for name, text in zip(names, texts, strict=True)},
        graph={"nodes": comparable(nodes, rag), "edges": comparable(edges, rag)},
        vectors={
            "chunks": comparable(await rag.chunks_vdb.get_vectors_by_ids(chunks), rag),
            "entities": comparable(
                await rag.entities_vdb.get_vectors_by_ids(entity_ids(nodes)), rag
            ),
            "relations": comparable(
                await rag.relationships_vdb.get_vectors_by_ids(relation_ids(edges)), rag
            ),
        },
        errors={str(row["error_msg"])[:120] for row in found if row.get("error_msg")},
    )


def entity_ids(nodes: list[dict[str, Any]]) -> list[str]:
    return sorted(identity("ent-", node["entity_id"]) for node in nodes)


def relation_ids(edges: list[dict[str, Any]]) -> list[str]:
    ends = (sorted((edge["source"], edge["target"])) for edge in edges)
    return sorted(identity("rel-", one + other) for one, other in ends)


def identity(prefix: str, text: str) -> str:
    return prefix + md5(text.encode(), usedforsecurity=False).hexdigest()


def comparable(found: Any, rag: Any) -> Any:
    """Rows without order, also of the values joined in them."""
    rows = found.items() if isinstance(found, dict) else found
    return sorted((plain(without_order(row), rag) for row in rows), key=repr)


def without_order(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    if "source" in row:  # an edge has no direction
        one, other = sorted((row["source"], row["target"]))
        row = row | {"source": one, "target": other, "id": "", "src_id": "", "tgt_id": ""}
    return {
        key: sorted(value.split(SEPARATOR)) if isinstance(value, str) else value
        for key, value in row.items()
    }
