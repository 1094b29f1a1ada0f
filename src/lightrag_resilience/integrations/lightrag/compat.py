"""All that is private or undocumented in LightRAG, from 1.4.16 on, and used by this package.

Nothing else here names such a method, attribute or module, and a test holds that. `PRIVATE_NAMES`,
the table in ``private_names.txt``, says what each name is for and what is lost without it.
``doctor --lightrag``, the warning of `protect` and ``docs/compatibility.md`` are made from it, and
a contract test compares it with the LightRAG that is installed. What a release lacks leaves its
seam unguarded, and breaks nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.resources
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightrag.base import DocStatus

from lightrag_resilience.config.policies import LIGHTRAG_TIMEOUTS
from lightrag_resilience.errors import UnsupportedCallError

__all__ = [
    "ADD_ANCHORS",
    "ANCHORS",
    "ANCHORS_MISSING",
    "BASE_MODULE",
    "DELETIONS",
    "DOWNLOAD",
    "EMBEDDING",
    "EXTERNAL_PARSERS",
    "FIELD_SEPARATOR",
    "GRAPH_STARTED",
    "GUNICORN_CONFIG",
    "GUNICORN_MAIN",
    "HEALTH_DETAILS",
    "HEALTH_PATH",
    "HOLDER_TABLE",
    "INGEST",
    "INITIALIZE_SHARED",
    "IS_CANCELLED",
    "LOAD_FLAGS",
    "LOAD_LOCK",
    "LOCK",
    "MARK_CANCELLED",
    "MARK_DUPLICATE",
    "MODEL",
    "NEXT_STEP",
    "PARSER_CLIENTS",
    "PARSER_HTTP",
    "PARSER_SPECS",
    "PARSE_WORKER",
    "PERSIST",
    "PRIVATE_NAMES",
    "PROCESS_DOCUMENT",
    "PURGE",
    "QUERIES",
    "RAG",
    "RERANK",
    "RETRYING_CLIENTS",
    "RETRYING_MODULES",
    "SERVER",
    "SHARED_STORAGE",
    "START_BACKGROUND",
    "STORAGES",
    "STORAGE_KINDS",
    "TRACKER",
    "UPLOAD_WORK",
    "WRAP_ROLE",
    "FunctionSlot",
    "PrivateName",
    "abandon",
    "are_storages_initialized",
    "binding_of",
    "calls_service",
    "clear_folder",
    "completion_mark",
    "configured_parsers",
    "find",
    "is_cancelled_by_user",
    "is_custom_chunk_patch",
    "is_empty_answer",
    "is_fail_response",
    "is_truncated",
    "largest_download",
    "local_parser",
    "pending_update",
    "purge_stale",
    "registered_storages",
    "retire",
    "roles_of",
    "server_of",
    "source_file",
    "storage_registry",
    "takes_tracker",
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
_BINDING_MODULES = {_AZURE: "openai"}
_RERANKERS = {"cohere_rerank": "cohere", "jina_rerank": "jina", "ali_rerank": "aliyun"}


def find(module: str, name: str) -> Any:
    """What a module of LightRAG's has under a name; None where it has not, or is not there."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None


def binding_of(function: Any) -> str | None:
    """The binding of one of LightRAG's own functions: ``openai`` for `openai_complete`."""
    module, name = (getattr(function, it, None) or "" for it in ("__module__", "__name__"))
    if module == _RERANK_MODULE:
        return _RERANKERS.get(name)
    package, _, binding = module.rpartition(".")
    if package != _LLM_PACKAGE:
        return None
    return _AZURE if name.startswith(f"{_AZURE}_") else binding  # 1.5 has them in `openai`


TRACKER = "token_tracker"
"""The argument of LightRAG's bindings whose `add_usage` gets what a provider says of its tokens."""


def takes_tracker(function: Any, metadata: Mapping[str, Any] | None = None) -> bool:
    """Whether a function that calls a provider takes a `token_tracker`.

    A function that only passes its arguments on has no such parameter: it must be one of LightRAG's
    own, as another's may pass them to a client that refuses the argument.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    if TRACKER in parameters:
        return True
    while isinstance(function, functools.partial):
        function = function.func
    binding = binding_of(function)
    if getattr(function, "__module__", None) == SERVER:
        binding = (metadata or {}).get("binding")
    if binding is None or all(it.kind is not it.VAR_KEYWORD for it in parameters.values()):
        return False
    module = _BINDING_MODULES.get(binding, binding)
    inner = vars(sys.modules.get(f"{_LLM_PACKAGE}.{module}", sys))
    cached = (it for name, it in inner.items() if name.endswith("_if_cache"))
    return any(TRACKER in inspect.signature(it).parameters for it in cached)


def worker_class() -> Any:
    """The Gunicorn worker of LightRAG's server; `object` before LightRAG 1.5."""
    try:
        return importlib.import_module("lightrag.api.gunicorn_worker").LightRAGUvicornWorker
    except ImportError:
        return object


# ---------------------------------------------------------------------- storages

STORAGE_KINDS = {
    "BaseKVStorage": "kv",
    "BaseVectorStorage": "vector",
    "BaseGraphStorage": "graph",
    "DocStatusStorage": "doc_status",
}
STORAGES = {
    "full_docs": "kv",
    "text_chunks": "kv",
    "full_entities": "kv",
    "full_relations": "kv",
    "entity_chunks": "kv",
    "relation_chunks": "kv",
    "llm_response_cache": "kv",
    "entities_vdb": "vector",
    "relationships_vdb": "vector",
    "chunks_vdb": "vector",
    "chunk_entity_relation_graph": "graph",
    "doc_status": "doc_status",
}
"""The attributes of a LightRAG's twelve storages, and the kind of each."""
_STORAGE_PACKAGE = "lightrag.kg"
_EMBEDDED = frozenset(
    {"faiss", "json_doc_status", "json_kv", "nano_vector_db", "networkx", "noop_vector_db"}
)
_SAME_SERVER = {"pgtable": "postgres"}


def server_of(module: str) -> str | None:
    """The server of the storages in a module; None for embedded ones, and those of others.

    Each server has a module, ``lightrag.kg.neo4j_impl``; so has one that a later LightRAG adds.
    """
    package, _, name = module.rpartition(".")
    name = name.removesuffix("_impl")
    if package != _STORAGE_PACKAGE or name in _EMBEDDED:
        return None
    return _SAME_SERVER.get(name, name)


_REGISTRY = ("STORAGES", "STORAGE_IMPLEMENTATIONS", "STORAGE_ENV_REQUIREMENTS")


def storage_registry() -> list[dict[str, Any]]:
    """By the names of storages: their modules, those of each kind, and the variables they need.

    Raises:
        UnsupportedCallError: This LightRAG has them under other names.
    """
    found = [find(_STORAGE_PACKAGE, name) for name in _REGISTRY]
    if None in found:
        names = " or ".join(_REGISTRY)
        raise UnsupportedCallError(f"This LightRAG has no {names} in {_STORAGE_PACKAGE}")
    return found


def registered_storages() -> dict[str, str]:
    """The modules of storages that LightRAG is configured with by name; empty if unknown."""
    found = find(_STORAGE_PACKAGE, _REGISTRY[0]) or {}
    return {
        name: f"lightrag{module}" if module.startswith(".") else module
        for name, module in found.items()
    }


FIELD_SEPARATOR = "<SEP>"
"""Between the chunks of an entity or relation, and the two ends of a relation."""


def are_storages_initialized(rag: Any) -> bool:
    """Whether a LightRAG's storages are open."""
    status = getattr(rag, _STATUS, None)
    return getattr(status, "name", "") == "INITIALIZED"


# ---------------------------------------------------------------------- queries

QUERIES = ("aquery_llm", "aquery_data")
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
    given, found = rag.role_llm_kwargs, {}
    for name, snapshot in rag.get_llm_role_config().items():
        inherited = {} if snapshot.get("is_cross_provider") else rag.llm_model_kwargs
        arguments = inherited if given[name] is None else given[name]
        function = rag._role_llm_states[name].raw_func  # noqa: SLF001
        found[name] = Role(function, snapshot["metadata"], arguments)
    return found


def is_fail_response(text: object) -> bool:
    """Whether an answer says that nothing was found."""
    return bool(text == importlib.import_module("lightrag.prompt").PROMPTS["fail_response"])


# ---------------------------------------------------------------------- answers


_END_MARK = "DEFAULT_COMPLETION_DELIMITER"
_TRUNCATED, _INVALID = "TruncatedResponse", "InvalidResponseError"


def completion_mark() -> str:
    """What ends the text of an extraction; its prompt asks for it."""
    prompts = find("lightrag.prompt", "PROMPTS") or {}
    return str(prompts.get(_END_MARK, "<|COMPLETE|>"))


def is_truncated(text: str) -> bool:
    """Whether a token limit has cut an answer; LightRAG 1.4 does not mark one."""
    return type(text).__name__ == _TRUNCATED


def is_empty_answer(error: BaseException) -> bool:
    """Whether LightRAG's OpenAI binding raised as the model answered with an empty text."""
    if type(error).__name__ != _INVALID or _EMPTY_ANSWER not in (text := str(error)):
        return False
    return _FILTERED not in text and _CUT_OFF not in text


_EMPTY_ANSWER, _FILTERED = "Received empty content", "finish_reason=content_filter"
_CUT_OFF = "done_reason=length"  # of Ollama's binding, which LightRAG does not call again either


# ---------------------------------------------------------------------- ingest

_PIPELINE = "apipeline_process_enqueue_documents"
INGEST = (
    "apipeline_enqueue_documents",
    _PIPELINE,
    "ainsert_custom_chunks",
    "ainsert_custom_kg",
    "adelete_by_doc_id",  # it rebuilds what other documents share, and must not stop halfway
)
DELETIONS = ("adelete_by_doc_id", "adelete_by_entity", "adelete_by_relation", "aclear_cache")
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


_BY_USER = "cancellation_requested"
_STATUS = "_storages_status"
_RESET = "_build_pending_reset_update"
_PATCH = "doc_status_custom_chunk_patch"


def pending_update(rag: Any, row: Any, content: Any) -> dict[str, Any]:
    """The row of a failed document as LightRAG's own reset writes it: pending, with no error."""
    if (build := getattr(rag, _RESET, None)) is not None:
        return cast("dict[str, Any]", build(row, content)[0])
    # LightRAG 1.4 processes failed documents as they are.
    update = {**dataclasses.asdict(row), "status": DocStatus.PENDING, "error_msg": ""}
    update.pop("multimodal_processed", None)
    return update


def is_cancelled_by_user(pipeline_status: Mapping[str, Any]) -> bool:
    """Whether a user has cancelled the pipeline."""
    return bool(pipeline_status.get(_BY_USER))


def is_custom_chunk_patch(row: Any) -> bool:
    """Whether a custom-chunk operation owns a document: that operation finishes it by itself."""
    patch = find("lightrag.utils_pipeline", _PATCH)
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

_QUEUE = "priority_limit_async_func_call"


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
    make = find("lightrag.utils", _QUEUE)
    if "concurrency_group" in inspect.signature(make).parameters:
        options["concurrency_group"] = name.lower()
    queued = make(limit, **options)(function)
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


# ---------------------------------------------------------------------- parsers of documents
#
# LightRAG has a table of parsers from 1.5.2 on. Before, 1.5.0 calls MinerU and Docling by itself.

PARSE_WORKER = "_parse_worker"
"""Parses queued documents; its last argument is the batch."""
PARSER_SPECS = "parser_specs"
"""A batch's table of parsers: by engine, a specification whose ``impl`` names module and class."""
_PARSERS, _SNAPSHOT = "lightrag.parser.registry", "parser_specs_snapshot"
EXTERNAL_PARSERS, _LOCAL_PARSERS = "lightrag.parser.external.", "lightrag.parser."
"""How the modules of LightRAG's parsers begin that call a service, and of those that do not."""
DOWNLOAD = "download_into"
"""The method of a parser with a cache that calls its service, given the folder to fill first."""
PARSER_CLIENTS = {
    "mineru": "lightrag.parser.external.mineru.client",
    "docling": "lightrag.parser.external.docling.client",
}
"""The modules of LightRAG's clients of parsers, by engine."""
PARSER_HTTP = "httpx"
"""The global of such a module whose `AsyncClient` sends all its requests."""


_LIMIT = ("lightrag.parser.external._common", "download_max_bytes")


def calls_service(spec: Any) -> bool:
    """Whether a parser calls a service, or is a plugin's that may."""
    is_local = spec.impl.startswith(_LOCAL_PARSERS) and not spec.impl.startswith(EXTERNAL_PARSERS)
    return not is_local


def configured_parsers() -> list[str]:
    """The engines of parsers that call a service and have an address."""
    specs: dict[str, Any] = getattr(importlib.import_module(_PARSERS), _SNAPSHOT)()
    return [it for it, spec in specs.items() if calls_service(spec) and spec.endpoint_configured()]


def clear_folder(folder: Any) -> None:
    """Remove what an upload that failed has left, as LightRAG does before the first."""
    importlib.import_module("lightrag.parser.external").clear_dir_contents(folder)


def largest_download() -> int | None:
    """Bytes of the largest result that LightRAG takes from a parser; None without a limit."""
    limit = find(*_LIMIT)
    return None if limit is None else cast("int | None", limit())


PERSIST = "_persist_parsed_full_docs"
"""The method by which a parser stores the text of a document."""
MARK_DUPLICATE = "_mark_duplicate_after_parse"
"""The method that makes a failed document of one whose text another has, and forgets its chunks."""
GRAPH_STARTED = "_mark_graph_mutation_started"
"""The method that is called before a document is added to the graph."""
_PURGE_STALE = "_purge_stale_extraction_if_resuming"
_LOCAL = ("legacy", "lightrag.parser.legacy.parser", "LegacyParser")
_ARCHIVE = "__parsed__"


def local_parser(path: str) -> Any:
    """LightRAG's own parser for the plain text of a file; None if it reads none of that suffix."""
    engine, module, cls = _LOCAL
    suffix = Path(path).suffix.lower().lstrip(".")
    if suffix not in importlib.import_module(_PARSERS).suffix_capabilities(engine):
        return None
    return getattr(importlib.import_module(module), cls)()


def source_file(rag: Any, document: str, path: str, row: Mapping[str, Any]) -> Path | None:
    """The file of a document that LightRAG will find again; None if there is none.

    Where an older one of its name is archived, that one would be found once it is archived too.
    """
    context = importlib.import_module("lightrag.parser.base").ParseContext
    found: Path = context(rag, document, path, row).source_path("")
    if not found.is_file():
        return None
    is_archived = found.parent.name == _ARCHIVE
    return found if is_archived or not (found.parent / _ARCHIVE / found.name).exists() else None


async def purge_stale(rag: Any, status: Any, given: Mapping[str, Any]) -> None:
    """Take what a document has stored before out of all storages, as its processing would.

    Args:
        rag: The LightRAG.
        status: The document's row.
        given: What LightRAG's pipeline knows of the document.
    """
    document = given["doc_id"]
    same = {name: given[name] for name in ("file_path", "pipeline_status", "pipeline_status_lock")}
    content = await rag.full_docs.get_by_id(document)
    await getattr(rag, _PURGE_STALE)(
        doc_id=document, status_doc=status, content_data=content, **same
    )


# ---------------------------------------------------------------------- the table

RAG = "lightrag.LightRAG"


@dataclass(frozen=True, slots=True)
class PrivateName:
    """A name of LightRAG's that a release may change without notice.

    Attributes:
        holder: What has it: a module, a class or a function of LightRAG's; or the file of a module
            that is only read, as its import would start a server or connect to one.
        name: Of a class also the name of an attribute that only its methods know; of a file a text.
        seams: What is not guarded without it.
        purpose: What it is for, as the end of "this package uses it to".
        loss: What happens without it.
        since: The first release that has it.
        parameters: Those of its parameters that are in use.
        needed_from: The first release that has what it would guard; empty for all.
        until: The first release that no longer needs it; empty if all do.
    """

    holder: str
    name: str
    seams: tuple[str, ...]
    purpose: str
    loss: str
    since: str = "1.4.16"
    parameters: tuple[str, ...] = ()
    needed_from: str = ""
    until: str = ""

    def __str__(self) -> str:
        if self.is_text:
            return f"`{self.name}` in {self.holder}"
        holder = self.holder.removeprefix("lightrag.")
        return f'{holder}["{self.name}"]' if holder.endswith("PROMPTS") else f"{holder}.{self.name}"

    @property
    def is_text(self) -> bool:
        """Whether it is a text in a file."""
        return self.holder.endswith(".py")


def _names_in(table: str) -> Iterator[PrivateName]:
    """The names of a table; its own comment describes it."""
    seams, loss = [""], ""
    for line in table.splitlines():
        if line.startswith("  "):
            holder, name, releases, purpose, *parameters = line.strip().split(" | ")
            since, *words = releases.split()
            needed = dict(zip(words[::2], words[1::2], strict=True))
            needed_from, until = ({"from": "", "before": ""} | needed).values()
            yield PrivateName(
                holder,
                name,
                tuple(seam.replace("{name}", name) for seam in seams),
                purpose,
                loss,
                since,
                tuple(" ".join(parameters).split()),
                needed_from,
                until,
            )
        elif line and not line.startswith("#"):
            listed, _, loss = line.partition(": ")
            seams = listed.split()


_TABLE = importlib.resources.files(__name__.rpartition(".")[0]) / "private_names.txt"
PRIVATE_NAMES = (*_names_in(_TABLE.read_text("utf-8")),)
"""Each name with what it is for, in the order of the seams."""
