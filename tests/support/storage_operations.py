"""Generated calls of every method of LightRAG's four kinds of storages, and how to compare them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import md5
from typing import Any

import numpy as np
from hypothesis import strategies as st
from lightrag.base import (
    BaseGraphStorage,
    BaseKVStorage,
    BaseVectorStorage,
    DocStatus,
    DocStatusStorage,
)

KINDS: dict[str, tuple[type, str]] = {  # kind: its class, and which of LightRAG's storages to take
    "kv": (BaseKVStorage, "full_docs"),
    "vector": (BaseVectorStorage, "entities_vdb"),
    "relations": (BaseVectorStorage, "relationships_vdb"),
    "graph": (BaseGraphStorage, "chunk_entity_relation_graph"),
    "doc_status": (DocStatusStorage, "doc_status"),
}
LIFE = {"initialize", "finalize"}  # called once each, at the end
CHANGING = ("time", "_at", "cursor", "fingerprint")  # parts of the names of what differs by nature
ADDRESS = re.compile(r"0x[0-9a-f]+")  # of an object, in an error's text

NAMES = ["a", "b", "c", "doc-é"]
ENTITIES = ["ent-" + md5(name.encode(), usedforsecurity=False).hexdigest() for name in NAMES]
ids = st.sampled_from(NAMES)
entity_ids = st.sampled_from(ENTITIES)
words = st.sampled_from(["", "one", "two'", 'th"ree', "vier\n", "ünf"])
id_lists = st.lists(ids, max_size=3, unique=True)
statuses = st.sampled_from(list(DocStatus))
status_lists = st.lists(statuses, min_size=1, max_size=3, unique=True)
edges = st.tuples(ids, ids)
edge_lists = st.lists(edges, min_size=1, max_size=4, unique=True)


@dataclass(frozen=True)
class Call:
    """One call of a method."""

    method: str
    arguments: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()

    async def of(self, storage: Any) -> Any:
        """What it gives, or the error that it raises, to be compared."""
        arguments, named = copy.deepcopy((self.arguments, dict(self.named)))
        try:
            given = await getattr(storage, self.method)(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - is the result
            given = (type(error).__qualname__, str(error))
        return plain(given, storage)


def plain(value: Any, storage: Any) -> Any:  # noqa: PLR0911 - one for each kind of value
    """A value without what differs by nature: times, cursors, the workspace and order of sets."""
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, str):
        return ADDRESS.sub("0x", value.replace(storage.workspace, "<workspace>"))
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), storage)
    if isinstance(value, float):
        return round(value, 5)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, plain(vars(value), storage)
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not any(part in str(k) for part in CHANGING)}
        pairs = ((str(plain(k, storage)), plain(v, storage)) for k, v in kept.items())
        return sorted(pairs, key=repr)
    if isinstance(value, set | frozenset):
        return sorted((plain(item, storage) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(item, storage) for item in value]
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(), storage)
    return value if isinstance(value, int | bool | None) else type(value).__name__


def call(method: str, *arguments: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]) -> Any:
    pairs = st.tuples(*(st.tuples(st.just(name), values) for name, values in named.items()))
    return st.builds(Call, st.just(method), st.tuples(*arguments), pairs)


def rows(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(ids, st.fixed_dictionaries(fields), max_size=3)


nodes = st.fixed_dictionaries(
    {"entity_id": ids, "entity_type": words, "description": words, "source_id": ids}
)
named_nodes = ids.flatmap(
    lambda name: st.tuples(st.just(name), nodes.map(lambda node: node | {"entity_id": name}))
)
related = st.fixed_dictionaries(
    {"weight": st.sampled_from([1.0, 2.5]), "description": words, "source_id": ids}
)
documents = rows(
    status=statuses.map(lambda status: status.value),
    content_summary=words,
    content_length=st.integers(0, 9),
    created_at=st.sampled_from(["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"]),
    updated_at=st.just("2026-01-03T00:00:00+00:00"),
    file_path=st.sampled_from(["x.txt", "y.txt"]),
    track_id=st.sampled_from(["t", "u"]),
    content_hash=st.sampled_from(["h", "i"]),
    chunks_list=id_lists,
    metadata=st.just({}),
)
COMMON = [
    call("index_done_callback"),
    call("drop_pending_index_ops"),
    call("drop"),
]
KV_READS = [
    call("get_by_id", ids),
    call("get_by_id_strict", ids),
    call("get_by_ids", id_lists),
    call("filter_keys", st.sets(ids, max_size=3)),
    call("is_empty"),
    call("delete", id_lists),
]


def vector_calls(keys: st.SearchStrategy[str], **fields: st.SearchStrategy[Any]) -> list[Any]:
    lists = st.lists(keys, max_size=3, unique=True)
    return [
        *COMMON,
        call("upsert", st.dictionaries(keys, st.fixed_dictionaries(fields), max_size=3)),
        call("query", words.filter(bool), st.integers(1, 3)),
        call("get_by_id", keys),
        call("get_by_ids", lists),
        call("get_vectors_by_ids", lists),
        call("delete", lists),
        call("delete_entity", ids),
        call("delete_entity_relation", ids),
    ]


paths = st.sampled_from(["x.txt", "y.txt", "z.txt"])
CALLS: dict[str, list[Any]] = {
    "kv": [*COMMON, *KV_READS, call("upsert", rows(content=words, file_path=words))],
    "vector": vector_calls(
        entity_ids, content=words, entity_name=ids, source_id=ids, file_path=words
    ),
    "relations": vector_calls(
        ids, content=words, src_id=ids, tgt_id=ids, source_id=ids, file_path=words
    ),
    "graph": [
        *COMMON,
        named_nodes.map(lambda pair: Call("upsert_node", pair)),
        call("upsert_nodes_batch", st.lists(named_nodes, max_size=3)),
        call("upsert_edge", ids, ids, related),
        call("upsert_edges_batch", st.lists(st.tuples(ids, ids, related), max_size=3)),
        call("has_node", ids),
        call("has_edge", ids, ids),
        call("node_degree", ids),
        call("edge_degree", ids, ids),
        call("get_node", ids),
        call("get_edge", ids, ids),
        call("get_node_edges", ids),
        call("get_nodes_batch", id_lists),
        call("node_degrees_batch", id_lists),
        call("edge_degrees_batch", edge_lists),
        call(
            "get_edges_batch",
            edge_lists.map(lambda pairs: [{"src": a, "tgt": b} for a, b in pairs]),
        ),
        call("get_nodes_edges_batch", id_lists),
        call("has_nodes_batch", id_lists),
        call("delete_node", ids),
        call("remove_nodes", id_lists),
        call("remove_edges", edge_lists),
        call("get_all_labels"),
        call("get_all_nodes"),
        call("get_all_edges"),
        call("get_popular_labels", st.integers(1, 3)),
        call("search_labels", ids, st.integers(1, 3)),
        call("get_knowledge_graph", ids | st.just("*"), st.integers(1, 2), st.integers(1, 9)),
    ],
    "doc_status": [
        *COMMON,
        *KV_READS,
        call("upsert", documents),
        call("get_status_counts"),
        call("get_all_status_counts"),
        call("get_docs_by_statuses", status_lists, strict=st.booleans()),
        call("get_docs_by_track_id", st.sampled_from(["t", "u", "v"])),
        call("get_docs_paginated", page=st.integers(1, 2), sort_field=st.just("id")),
        call("get_doc_by_file_path", paths),
        call("get_doc_by_file_basename", paths),
        call("get_doc_by_content_hash", st.sampled_from(["h", "j"])),
        call("get_docs_by_statuses_page", status_lists, limit=st.integers(1, 3)),
        call("get_docs_by_ids", id_lists, strict=st.booleans()),
        call("get_full_docs_by_ids", id_lists, strict=st.booleans()),
        call("count_docs_by_statuses", status_lists),
        call(
            "update_doc_status_fields",
            ids,
            st.sampled_from([{"track_id": "v"}, {"created_at": "now"}]),
            missing_ok=st.booleans(),
        ),
        call("resolve_doc_source_strict", paths),
        call("list_source_conflicts_page", limit=st.integers(1, 3)),
        call(
            "repair_source_conflict",
            paths,
            primary_doc_id=ids,
            expected_candidate_count=st.integers(1, 3),
            expected_candidate_fingerprint=st.just("unknown"),
            dry_run=st.booleans(),
        ),
    ],
}


AT_THE_END = {  # reads that show all that was written
    "kv": [Call("get_by_ids", (NAMES,))],
    "vector": [Call("get_by_ids", (ENTITIES,))],
    "relations": [Call("get_by_ids", (NAMES,))],
    "graph": [Call("get_all_nodes"), Call("get_all_edges")],
    "doc_status": [Call("get_by_ids", (NAMES,))],
}


def methods_of(kind: str) -> set[str]:
    """Every public coroutine method of a kind of storage, its bases' too."""
    found = inspect.getmembers(KINDS[kind][0], inspect.iscoroutinefunction)
    return {name for name, _ in found if not name.startswith("_")}


def sequences(kind: str) -> st.SearchStrategy[list[Call]]:
    """Calls one after another: each method is called now and then, and writes come first."""
    writes = [calls for calls in CALLS[kind] if "upsert" in repr(calls)]
    begin = st.lists(st.one_of(writes), min_size=1, max_size=3)
    then = st.lists(st.one_of(CALLS[kind]), min_size=5, max_size=20)

    def joined(one: list[Call], two: list[Call]) -> list[Call]:
        return [*one, Call("index_done_callback"), *two, *AT_THE_END[kind]]

    return st.builds(joined, begin, then)
