"""What `protect` changes on one instance, and how it is changed back."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any

from lightrag.base import StoragesStatus

from lightrag_resilience.draining.gate import allow_during_drain, is_allowed_during_drain
from lightrag_resilience.integrations.lightrag.degradation.degradation import Degradation
from lightrag_resilience.integrations.lightrag.degradation.levels import QueryComponent
from lightrag_resilience.integrations.lightrag.recovery.anchors import RecoveryAnchors
from lightrag_resilience.integrations.lightrag.recovery.recovery import Recovery
from lightrag_resilience.integrations.lightrag.work.context import (
    Stage,
    as_work,
    call_guarded,
    reached,
)
from lightrag_resilience.integrations.lightrag.work.document_counts import DocumentCounts
from lightrag_resilience.integrations.lightrag.work.function_queues import (
    EMBEDDING,
    MODEL,
    RERANK,
    FunctionSlot,
    abandon,
    retire,
    without_queue,
)
from lightrag_resilience.integrations.lightrag.work.ingest import Ingest, current_run, save_answers
from lightrag_resilience.integrations.lightrag.work.query_errors import raise_on_dependency_error
from lightrag_resilience.integrations.lightrag.work.query_events import with_query_events
from lightrag_resilience.integrations.sdks import detect_truncated_streams, disable_sdk_retries
from lightrag_resilience.limits.priority import Priority, current_priority, priority
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards

from .inner_retries import make_inner_retries_yield, restore_inner_retries
from .storages import guard_storage, release_storage

__all__ = ["PROVIDER", "Protection"]

PROVIDER = "__resilience_provider__"
"""An attribute of a function that calls a provider: its name, as LightRAG's bindings have it."""

_CARRIED = "_resilience_carried"
"""An argument that goes with a call through a queue, whose workers have contexts of their own:
its priority, whether it was let in before a drain, and the run of ingest it is part of."""
_CARRIED_BY_NONE = (Priority.INTERACTIVE, False, None)
_PARTS = {
    "llm": frozenset({QueryComponent.MODEL}),
    "embedding": frozenset({QueryComponent.VECTORS}),
}
_AZURE = "azure_openai"
_RERANKERS = {"cohere_rerank": "cohere", "jina_rerank": "jina", "ali_rerank": "aliyun"}
_STORAGES: dict[str, QueryComponent | None] = {
    "full_docs": None,
    "text_chunks": QueryComponent.TEXTS,
    "full_entities": None,
    "full_relations": None,
    "entity_chunks": None,
    "relation_chunks": None,
    "llm_response_cache": QueryComponent.TEXTS,
    "entities_vdb": QueryComponent.VECTORS,
    "relationships_vdb": QueryComponent.VECTORS,
    "chunks_vdb": QueryComponent.VECTORS,
    "chunk_entity_relation_graph": QueryComponent.GRAPH,
    "doc_status": None,
}
"""Where LightRAG keeps its storages, and what a query loses with each."""
_QUERIES = ("aquery_llm", "aquery_data")
_INGEST = (
    "apipeline_enqueue_documents",
    "apipeline_process_enqueue_documents",
    "ainsert_custom_chunks",
    "ainsert_custom_kg",
    "adelete_by_doc_id",  # it builds anew what other documents say, and must not stop halfway
)
_DELETIONS = ("adelete_by_doc_id", "adelete_by_entity", "adelete_by_relation", "aclear_cache")


class Protection:
    """What `protect` changed on one instance.

    `_queues` holds the queue in force for each role, ``embedding`` and ``rerank``: a call that
    waits for its provider goes on in the present queue, not in one that was retired meanwhile.
    `_undo` takes back what was done by now, the last first.
    """

    def __init__(self, rag: Any, registry: Guards) -> None:
        self._rag = rag
        self._registry = registry
        self._ingest = Ingest(rag, registry)
        self._patience = registry.settings.ingest_patience
        self._queues: dict[str, Callable[..., Any]] = {}
        self._undo = AsyncExitStack()
        self._degradation: Degradation | None = None
        if registry.settings.degrade:
            stale_for = registry.settings.stale_answers
            self._degradation = Degradation(rag, self._parts_of, stale_for)
        self._background: list[Recovery | DocumentCounts] = []
        self._stored: dict[str, frozenset[QueryComponent]] = {}
        self._of_ingest: set[str] = set()
        self._build_role: Any = getattr(rag, "_wrap_llm_role_func", None)  # LightRAG 1.5

    async def apply(self) -> None:
        """Put everything in its place."""
        rag = self._rag
        self._undo.callback(restore_inner_retries, make_inner_retries_yield())
        self._undo.callback(disable_sdk_retries(*_imported_sdks()))
        self._undo.callback(detect_truncated_streams(*_imported_sdks()))
        if self._build_role is not None:
            self._undo.push_async_callback(self._give_roles_back)
            self._shadow("_wrap_llm_role_func", self._wrap_role)  # the one place roles are built
            await self._rebuild_roles()
        else:
            await self._replace(MODEL, rag.llm_model_func)
        if rag.embedding_func is not None:
            await self._replace(EMBEDDING, rag.embedding_func.func)
        if rag.rerank_model_func is not None:
            await self._replace(RERANK, rag.rerank_model_func)
        for attribute, storage in _storages(rag):
            guard = guard_storage(storage, registry=self._registry)
            self._undo.callback(release_storage, storage)
            lost = {part} if (part := _STORAGES[attribute]) else set()
            self._of_ingest.add(guard.name)
            self._stored[guard.name] = self._stored.get(guard.name, frozenset()) | lost
        for name in _QUERIES:
            self._shadow(name, self._query(name))
        if self._degradation is not None:
            for name in filter(functools.partial(hasattr, rag), _DELETIONS):
                self._shadow(name, self._degradation.forgetting(getattr(rag, name)))
            texts = rag.text_chunks  # LightRAG's server clears all documents storage by storage
            self._shadow("drop", self._degradation.forgetting(texts.drop), of=texts)
        for name in filter(functools.partial(hasattr, rag), _INGEST):
            method = self._ingest.followed(getattr(rag, name), name)
            self._shadow(name, as_work(method, self._patience))
        for name, seam in [
            *self._ingest.method_overrides(),
            *RecoveryAnchors(rag).method_overrides(),
        ]:
            self._shadow(name, seam)
        self._prepare_background()

    async def undo(self) -> None:
        """Give everything back."""
        await self._undo.aclose()

    def _prepare_background(self) -> None:
        """Recover and count documents while the storages are there, and flush them at the end."""
        initialize, finalize = self._rag.initialize_storages, self._rag.finalize_storages

        @functools.wraps(initialize)
        async def initialize_storages() -> None:
            await initialize()
            self._begin_background()

        @functools.wraps(finalize)
        async def finalize_storages() -> None:
            await self._end_background()
            is_end = self._registry.gate.is_closed and self._are_storages_open
            with allow_during_drain():
                if is_end:
                    await save_answers(self._rag)
                await finalize()
            if is_end:
                await asyncio.gather(*map(abandon, self._queues.values()))

        self._shadow("initialize_storages", initialize_storages)
        self._shadow("finalize_storages", finalize_storages)
        self._undo.push_async_callback(self._end_background)
        if self._are_storages_open:
            self._begin_background()

    @property
    def _are_storages_open(self) -> bool:
        return self._rag._storages_status is StoragesStatus.INITIALIZED  # noqa: SLF001 - nowhere else

    def _begin_background(self) -> None:
        if self._background:
            return
        self._background.append(DocumentCounts(self._rag, self._registry.events))
        if self._registry.settings.recovery:
            self._background.append(Recovery(self._rag, self._registry, self._of_ingest))
        for each in self._background:
            each.begin()

    async def _end_background(self) -> None:
        background, self._background = self._background, []
        for each in background:
            await each.end()

    def _shadow(self, name: str, method: Callable[..., Any], of: Any = None) -> None:
        """Put a method before the one of the class, or the instance's own: the LightRAG's."""
        instance = self._rag if of is None else of
        own = vars(instance)
        if name in own:
            self._undo.callback(setattr, instance, name, own[name])
        else:
            self._undo.callback(own.pop, name, None)
        setattr(instance, name, method)

    # ------------------------------------------------------------------ what is put where

    def _query(self, name: str) -> Callable[..., Any]:
        return with_query_events(self._honest(name), self._registry, self._rag.workspace or "")

    def _honest(self, name: str) -> Callable[..., Any]:
        method = raise_on_dependency_error(getattr(self._rag, name))
        if self._degradation is None:
            return method
        return self._degradation.around(
            method, raise_on_dependency_error(getattr(type(self._rag), name))
        )

    def _parts_of(self, dependency: str) -> frozenset[QueryComponent]:
        """What a query loses with a dependency."""
        family = dependency.partition(".")[0]
        return self._stored.get(dependency) or _PARTS.get(family, frozenset())

    async def _rebuild_roles(self) -> None:
        # An update that changes nothing builds the role's function anew and ends its old queue.
        roles = list(self._rag.role_llm_funcs)
        await asyncio.gather(*map(self._rag.aupdate_llm_role_config, roles))

    async def _give_roles_back(self) -> None:
        await self._rebuild_roles()
        self._queues |= self._rag.role_llm_funcs

    def _wrap_role(
        self,
        role: str,
        function: Callable[..., Any],
        max_async: int,
        timeout: int,
        model_kwargs: dict[str, Any],
    ) -> Callable[..., Any]:
        metadata = self._rag._role_llm_states[role].metadata  # noqa: SLF001
        guard = self._guard_of("llm", function, metadata.get("binding"))
        called = _guarded(function, guard, self._ingest.park_if_late, metadata.get("model"))
        queued = self._build_role(role, called, max_async, timeout, model_kwargs)
        return self._gated(role, queued, guard)

    async def _replace(self, slot: FunctionSlot, old: Any) -> None:
        original = without_queue(old)
        guard = self._guard_of(slot.name, original)
        before = self._ingest.park_if_late if slot is MODEL else None
        queued = slot.new_queue(self._rag, _guarded(original, guard, before))
        slot.put(self._rag, self._gated(slot.name, queued, guard))
        self._undo.push_async_callback(self._give_back, slot, original)
        await retire(old)

    async def _give_back(self, slot: FunctionSlot, original: Callable[..., Any]) -> None:
        retired = self._queues[slot.name]
        self._queues[slot.name] = queued = slot.new_queue(self._rag, original)
        slot.put(self._rag, queued)
        await retire(retired)

    def _guard_of(
        self, family: str, function: Callable[..., Any], binding: str | None = None
    ) -> Guard:
        # A chain bears its first function's name, and must not share that one's guard.
        is_chain = hasattr(_inner(function), "__resilience_chain__")
        provider = None if is_chain else binding or _provider(function)
        guard = self._registry.get(f"{family}.{provider}" if provider else family)
        if family != RERANK.name:
            self._of_ingest.add(guard.name)
        return guard

    def _gated(self, name: str, queued: Callable[..., Any], guard: Guard) -> Callable[..., Any]:
        """Around a queue: queries are refused before they queue, ingest waits outside of it.

        A wait inside would hold one of the queue's few workers, and end at the queue's timeout.
        """
        queues = self._queues
        queues[name] = queued

        @functools.wraps(queued)
        async def through_the_gate(*args: Any, **kwargs: Any) -> Any:
            carried = current_priority.get(), is_allowed_during_drain.get(), current_run.get()
            if carried != _CARRIED_BY_NONE:
                kwargs[_CARRIED] = carried
            return await call_guarded(guard, lambda: queues[name](*args, **kwargs))

        return through_the_gate


def _storages(rag: Any) -> Iterator[tuple[str, Any]]:
    for attribute in _STORAGES:
        if (storage := getattr(rag, attribute, None)) is not None:
            yield attribute, storage


def _guarded(
    function: Callable[..., Any],
    guard: Guard,
    before: Callable[[], Awaitable[None]] | None = None,
    model: str | None = None,
) -> Callable[..., Any]:
    """Inside LightRAG's queue: the guard, after what is to be waited for before.

    The model is for those who trace.
    """

    async def begin(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    vars(begin)["__resilience_model__"] = model

    @functools.wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        level, may_go_on, run = kwargs.pop(_CARRIED, _CARRIED_BY_NONE)
        tokens = is_allowed_during_drain.set(may_go_on), current_run.set(run)
        try:
            if before is not None:
                await before()
            with priority(level):
                return await guard.run(begin, args, kwargs)
        except Exception as error:
            reached(error, Stage.QUEUED)
            raise
        finally:
            is_allowed_during_drain.reset(tokens[0])
            current_run.reset(tokens[1])

    return guarded


def _imported_sdks() -> list[ModuleType]:
    """Those whose own retries would multiply the guard's."""
    return [sys.modules[name] for name in ("openai", "anthropic") if name in sys.modules]


def _provider(function: Any) -> str | None:
    """The provider that a function calls, by the name of its binding; None for one of a user's own.

    LightRAG's own are known by where they stand: ``openai`` for those of ``lightrag.llm.openai``.
    """
    inner = _inner(function)
    if (with_query_events := getattr(inner, PROVIDER, None)) is not None:
        return str(with_query_events)
    package, _, module = getattr(inner, "__module__", "").rpartition(".")
    name = getattr(inner, "__name__", "")
    if (package, module) == ("lightrag", "rerank"):
        return _RERANKERS.get(name)
    if package != "lightrag.llm":
        return None
    return _AZURE if name.startswith(f"{_AZURE}_") else module  # LightRAG 1.5 has moved these


def _inner(function: Any) -> Any:
    """What a partial calls."""
    while isinstance(function, functools.partial):
        function = function.func
    return function
