"""All that is private or undocumented in LightRAG, from 1.4.16 on, and used by this package.

Nothing else here names such a method, attribute or module. A contract test holds each of them for
the version that is installed; what LightRAG 1.4 lacks is looked up with `hasattr` by its users.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from lightrag.base import DocStatus, StoragesStatus
from lightrag.prompt import PROMPTS
from lightrag.utils import priority_limit_async_func_call

from lightrag_resilience.config.policies import LIGHTRAG_TIMEOUTS

try:
    from lightrag import utils_pipeline
except ImportError:  # LightRAG 1.4
    utils_pipeline = None

__all__ = [
    "ADD_ANCHORS",
    "ANCHORS",
    "ANCHORS_MISSING",
    "BASE_MODULE",
    "EMBEDDING",
    "FIELD_SEPARATOR",
    "GUNICORN_CONFIG",
    "GUNICORN_MAIN",
    "HEALTH_DETAILS",
    "HEALTH_PATH",
    "HOLDER_TABLE",
    "INITIALIZE_SHARED",
    "IS_CANCELLED",
    "LOAD_FLAGS",
    "LOAD_LOCK",
    "LOCK",
    "MARK_CANCELLED",
    "MODEL",
    "NEXT_STEP",
    "PROCESS_DOCUMENT",
    "PURGE",
    "RERANK",
    "RETRYING_CLIENTS",
    "RETRYING_MODULES",
    "SERVER",
    "SHARED_STORAGE",
    "START_BACKGROUND",
    "STORAGE_KINDS",
    "STORAGE_SERVERS",
    "UPLOAD_WORK",
    "WRAP_ROLE",
    "FunctionSlot",
    "abandon",
    "are_storages_initialized",
    "binding_of",
    "is_custom_chunk_patch",
    "is_fail_response",
    "pending_update",
    "retire",
    "roles_of",
    "without_queue",
    "worker_class",
]

# ---------------------------------------------------------------------- modules

BASE_MODULE = "lightrag.base"
SERVER = "lightrag.api.lightrag_server"
GUNICORN_CONFIG = "lightrag.api.gunicorn_config"
GUNICORN_MAIN = "lightrag.api.run_with_gunicorn"
HEALTH_PATH, HEALTH_DETAILS = "/health", "configuration"
"""The route about the server's health, and what its answer has for authenticated callers alone."""
SHARED_STORAGE = "lightrag.kg.shared_storage"
RETRYING_MODULES = ("lightrag.llm.", "lightrag.rerank", "lightrag.kg.")
"""How the names of modules begin whose functions may be decorated with tenacity."""
RETRYING_CLIENTS = (
    ("lightrag.kg.postgres_impl", "PostgreSQLDB", "connection_retry_attempts", 1),
    ("opensearchpy.transport", "Transport", "max_retries", 0),
)
"""Clients that retry without tenacity: module, class, attribute, and its value for no retry."""

_LLM_PACKAGE, _RERANK_MODULE = "lightrag.llm", "lightrag.rerank"
_AZURE = "azure_openai"
_RERANKERS = {"cohere_rerank": "cohere", "jina_rerank": "jina", "ali_rerank": "aliyun"}


def binding_of(function: Any) -> str | None:
    """The binding of one of LightRAG's own functions: ``openai`` for `openai_complete`."""
    module, name = (getattr(function, it, None) or "" for it in ("__module__", "__name__"))
    if module == _RERANK_MODULE:
        return _RERANKERS.get(name)
    package, _, binding = module.rpartition(".")
    if package != _LLM_PACKAGE:
        return None
    return _AZURE if name.startswith(f"{_AZURE}_") else binding  # 1.5 has them in `openai`


def worker_class() -> Any:
    """The Gunicorn worker of LightRAG's server; `object` before LightRAG 1.5."""
    try:
        return importlib.import_module("lightrag.api.gunicorn_worker").LightRAGUvicornWorker
    except ImportError:
        return object


# ---------------------------------------------------------------------- storages

STORAGE_SERVERS = {
    "lightrag.kg.memgraph_impl": "memgraph",
    "lightrag.kg.milvus_impl": "milvus",
    "lightrag.kg.mongo_impl": "mongo",
    "lightrag.kg.neo4j_impl": "neo4j",
    "lightrag.kg.opensearch_impl": "opensearch",
    "lightrag.kg.pgtable_impl": "postgres",
    "lightrag.kg.postgres_impl": "postgres",
    "lightrag.kg.qdrant_impl": "qdrant",
    "lightrag.kg.redis_impl": "redis",
}
STORAGE_KINDS = {
    "BaseKVStorage": "kv",
    "BaseVectorStorage": "vector",
    "BaseGraphStorage": "graph",
    "DocStatusStorage": "doc_status",
}
FIELD_SEPARATOR = "<SEP>"
"""Between the chunks of an entity or relation, and the two ends of a relation."""


def are_storages_initialized(rag: Any) -> bool:
    """Whether a LightRAG's storages are open."""
    return rag._storages_status is StoragesStatus.INITIALIZED  # noqa: SLF001


# ---------------------------------------------------------------------- queries

WRAP_ROLE = "_wrap_llm_role_func"
"""Builds the queue of one role (extract, keyword, query, vlm) around its function."""


@dataclass(frozen=True)
class Role:
    """One role of a LightRAG's models.

    Attributes:
        function: What calls the model.
        metadata: What LightRAG's server says of it: its ``binding``, ``host``, ``model`` and so on.
        arguments: What LightRAG adds to each call.
    """

    function: Callable[..., Any]
    metadata: Mapping[str, Any]
    arguments: Mapping[str, Any]


def roles_of(rag: Any) -> dict[str, Role]:
    """The roles of a LightRAG, by name."""
    return {
        name: Role(state.raw_func, state.metadata, rag._get_effective_role_llm_kwargs(name))  # noqa: SLF001
        for name, state in rag._role_llm_states.items()  # noqa: SLF001
    }


def is_fail_response(text: object) -> bool:
    """Whether an answer says that nothing was found."""
    return bool(text == PROMPTS["fail_response"])


# ---------------------------------------------------------------------- ingest

PROCESS_DOCUMENT = "process_single_document"
IS_CANCELLED = "_cancellation_requested"
MARK_CANCELLED = "_mark_doc_cancelled_in_stage"
NEXT_STEP = "_decide_pipeline_next_step"
PURGE = "_purge_doc_chunks_and_kg"
ADD_ANCHORS = "_union_doc_recovery_anchors"
ANCHORS = {"full_entities": "entity_names", "full_relations": "relation_pairs"}
"""The storages of recovery anchors, and the column of each that names parts of the graph."""
ANCHORS_MISSING = "recovery anchor row(s) missing"
"""In the message of a document that LightRAG refuses to take out of the graph."""


def pending_update(rag: Any, row: Any, content: Any) -> dict[str, Any]:
    """The row of a failed document as LightRAG's own reset writes it: pending, with no error."""
    if hasattr(rag, "_build_pending_reset_update"):
        return cast("dict[str, Any]", rag._build_pending_reset_update(row, content)[0])  # noqa: SLF001
    # LightRAG 1.4 processes failed documents as they are.
    update = {**dataclasses.asdict(row), "status": DocStatus.PENDING, "error_msg": ""}
    update.pop("multimodal_processed", None)
    return update


def is_custom_chunk_patch(row: Any) -> bool:
    """Whether a custom-chunk operation owns a document: that operation finishes it by itself."""
    patch = getattr(utils_pipeline, "doc_status_custom_chunk_patch", None)
    return patch is not None and patch(row) is not None


# ---------------------------------------------------------------------- workers of one server

INITIALIZE_SHARED = "initialize_share_data"
HOLDER_TABLE = "_keyed_holder_table"
LOCK, LOAD_LOCK, LOAD_FLAGS = "_internal_lock", "_data_init_lock", "_init_flags"
START_BACKGROUND = "start_reserved_background_task"
UPLOAD_WORK = "_indexing_work"
"""The name of the functions that the server starts in the background to store an upload."""


# ---------------------------------------------------------------------- queues of functions
#
# LightRAG 1.5 has a queue for each role of its models; 1.4 has one for all, and none to rerank.


@dataclass(frozen=True)
class FunctionSlot:
    """Where LightRAG keeps a function that belongs to no role, and how it queues it."""

    name: str
    new_queue: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
    put: Callable[[Any, Callable[..., Any]], None]

    def timeout(self, rag: Any) -> float | None:
        """Seconds that LightRAG gives its calls; None without a limit."""
        default = LIGHTRAG_TIMEOUTS[self.name]  # LightRAG 1.4 has none for reranking
        return cast("float | None", getattr(rag, f"default_{self.name}_timeout", default))


def _queue(
    function: Callable[..., Any], limit: int, timeout: float, name: str
) -> Callable[..., Any]:
    options = {"llm_timeout": timeout, "queue_name": f"{name} func"}
    if "concurrency_group" in inspect.signature(priority_limit_async_func_call).parameters:
        options["concurrency_group"] = name.lower()
    queued = priority_limit_async_func_call(limit, **options)(function)
    return cast("Callable[..., Any]", queued)


def _queue_model(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    return _queue(function, rag.llm_model_max_async, rag.default_llm_timeout, "LLM")


def _put_model(rag: Any, function: Callable[..., Any]) -> None:
    rag.llm_model_func = function


def _queue_embedding(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    limit, timeout = rag.embedding_func_max_async, rag.default_embedding_timeout
    return _queue(function, limit, timeout, "Embedding")


def _put_embedding(rag: Any, function: Callable[..., Any]) -> None:
    # All storages share this object, so that changing its function reaches each of them.
    rag.embedding_func.func = function


def _queue_rerank(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    if not hasattr(rag, "rerank_model_max_async"):
        return function  # LightRAG 1.4 calls it directly
    return _queue(function, rag.rerank_model_max_async, rag.default_rerank_timeout, "Rerank")


def _put_rerank(rag: Any, function: Callable[..., Any]) -> None:
    rag.rerank_model_func = function
    # Queries take it from the configuration that the storages were made with.
    for storage in vars(rag).values():
        config = getattr(storage, "global_config", None)
        if isinstance(config, dict) and "rerank_model_func" in config:
            config["rerank_model_func"] = function


MODEL = FunctionSlot("llm", _queue_model, _put_model)
EMBEDDING = FunctionSlot("embedding", _queue_embedding, _put_embedding)
RERANK = FunctionSlot("rerank", _queue_rerank, _put_rerank)


def without_queue(function: Any) -> Any:
    """The function inside a queue of LightRAG's; one that has no queue as it is."""
    return inspect.unwrap(function, stop=lambda layer: not hasattr(layer, "shutdown"))


async def retire(queued: Any) -> None:
    """End a queue that gets no more calls, after the calls it holds."""
    await _shut_down(queued, graceful=True)


async def abandon(queued: Any) -> None:
    """End a queue and cancel the calls it holds. Its workers survive a cancellation otherwise."""
    await _shut_down(queued, graceful=False)


async def _shut_down(queued: Any, *, graceful: bool) -> None:
    shutdown = getattr(queued, "shutdown", None)
    if shutdown is not None:
        is_known = "graceful" in inspect.signature(shutdown).parameters
        await (shutdown(graceful=graceful) if is_known else shutdown())
