"""What `protect` changes on one LightRAG, and how `unprotect` restores it."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from lightrag_resilience.config.endpoint_names import Endpoint
from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.errors import UnsupportedCallError
from lightrag_resilience.integrations.lightrag.degradation.degradation import Degradation
from lightrag_resilience.integrations.lightrag.degradation.levels import QueryComponent
from lightrag_resilience.integrations.lightrag.parsing.degraded import (
    DegradedDocuments,
    Replacing,
)
from lightrag_resilience.integrations.lightrag.parsing.parsers import Parsers
from lightrag_resilience.integrations.lightrag.recovery.anchors import RecoveryAnchors
from lightrag_resilience.integrations.lightrag.recovery.recovery import Recovery
from lightrag_resilience.integrations.lightrag.work.context import (
    as_work,
    call_guarded,
)
from lightrag_resilience.integrations.lightrag.work.document_counts import DocumentCounts
from lightrag_resilience.integrations.lightrag.work.ingest import Ingest, save_answers
from lightrag_resilience.integrations.lightrag.work.metered import metered
from lightrag_resilience.integrations.lightrag.work.query_errors import raise_on_dependency_error
from lightrag_resilience.integrations.lightrag.work.query_events import with_query_events
from lightrag_resilience.integrations.lightrag.work.query_time import QueryTime
from lightrag_resilience.integrations.sdks import (
    detect_truncated_streams,
    disable_sdk_retries,
    follow_rate_limits,
)
from lightrag_resilience.limits.token_usage import with_tokenizer
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.recovery_probe import Probe
from lightrag_resilience.pipeline.registry import Guards

from .compat import (
    DELETIONS,
    EMBEDDING,
    INGEST,
    MODEL,
    PARSE_WORKER,
    QUERIES,
    RERANK,
    STORAGES,
    WRAP_ROLE,
    FunctionSlot,
    abandon,
    are_storages_initialized,
    retire,
    roles_of,
    takes_tracker,
    without_queue,
)
from .contracts import (
    Completion,
    Embedding,
    EmptyAnswers,
    NewContract,
    Rerank,
    under_contract,
    without_invalid_answers,
)
from .coverage import Cover, Coverage
from .endpoints import endpoint_of
from .inner_retries import make_inner_retries_yield, restore_inner_retries
from .probes import probe_of, storage_probe
from .queued_calls import GuardedCalls, into_queue
from .storages import guard_storage, guarding, is_embedded, release_storage

__all__ = ["Protection"]

_log = logging.getLogger("lightrag_resilience")
_NO_ANEW = "to parse a document anew takes LightRAG 1.5.6 and RESILIENCE_RECOVERY"
_SDKS = ("openai", "anthropic")
_SDK_CHANGES = (
    (disable_sdk_retries, "its retries multiply those of a guard"),
    (detect_truncated_streams, "its streams that break off end as if they were complete"),
    (follow_rate_limits, "a rate limit that a 429 has lowered does not rise again"),
)
"""What is changed in each SDK that is imported, and what happens in one that it does not suit."""
_LOST_BY_FAMILY = {
    "llm": frozenset({QueryComponent.MODEL}),
    "embedding": frozenset({QueryComponent.VECTORS}),
}
_LOST_BY_STORAGE = {
    "text_chunks": QueryComponent.TEXTS,
    "llm_response_cache": QueryComponent.TEXTS,
    "entities_vdb": QueryComponent.VECTORS,
    "relationships_vdb": QueryComponent.VECTORS,
    "chunks_vdb": QueryComponent.VECTORS,
    "chunk_entity_relation_graph": QueryComponent.GRAPH,
}
"""What a query loses with a storage."""


class Protection:
    """What `protect` changed on one instance.

    `_queues` holds the current queue of each role, of ``embedding`` and of ``rerank``: a call that
    waited for its provider goes on in the current queue, not in one that was retired meanwhile.
    `_undo` restores what was changed so far, the last change first.
    """

    def __init__(self, rag: Any, registry: Guards) -> None:
        self._rag = rag
        self._registry = registry
        self._ingest = Ingest(rag, registry)
        self._patience = registry.settings.ingest_patience
        self._query_time = QueryTime(registry.settings, registry.clock)
        self._queues: dict[str, Callable[..., Any]] = {}
        self._undo = AsyncExitStack()
        self._degradation: Degradation | None = None
        self._coverage = Coverage(type(rag))
        if registry.settings.degrade and self._coverage.is_guarded("queries.degraded"):
            stale_for = registry.settings.stale_answers
            self._degradation = Degradation(rag, self._components_of, stale_for)
        self._degraded: DegradedDocuments | None = None
        self._background: list[Recovery | DocumentCounts] = []
        self._probes: dict[str, Callable[[], None]] = {}  # what ends each, by its guard
        self._lost_with: dict[str, frozenset[QueryComponent]] = {}
        self._ingest_dependencies: set[str] = set()
        tokenizer = getattr(rag, "tokenizer", None)
        self._count_tokens = with_tokenizer(getattr(tokenizer, "encode", None))
        self._build_role: Any = None  # of LightRAG 1.5

    async def apply(self) -> None:
        """Replace functions, queries and methods of the pipeline, and guard the storages.

        Raises:
            UnsupportedCallError: Something cannot be guarded, and `RESILIENCE_STRICT` is true.
        """
        rag = self._rag
        self._loop = asyncio.get_running_loop()
        self._undo.callback(lambda: self._end_probes([*self._probes]))
        self._undo.callback(restore_inner_retries, make_inner_retries_yield())
        self._change_sdks()
        self._guard_storages()
        self._coverage.report(strict=self._registry.settings.strict)
        await self._guard_functions()
        for name in filter(functools.partial(hasattr, rag), QUERIES):
            self._shadow(name, self._query(name))
        if self._degradation is not None:
            for name in filter(functools.partial(hasattr, rag), DELETIONS):
                self._shadow(name, self._degradation.clearing(getattr(rag, name)))
            # LightRAG's server clears all documents storage by storage, not by a deletion.
            texts = rag.text_chunks
            self._shadow("drop", self._degradation.clearing(texts.drop), of=texts)
        for name in filter(functools.partial(hasattr, rag), INGEST):
            method = self._ingest.tracked(getattr(rag, name), name)
            self._shadow(name, as_work(method, self._patience))
        if self._coverage.is_guarded("pipeline.drain"):
            for name, override in self._ingest.method_overrides():
                self._shadow(name, override)
        if self._coverage.is_guarded("pipeline.anchors"):
            for name, override in RecoveryAnchors(rag).method_overrides():
                self._shadow(name, override)
        if "parser.plugins" in self._coverage and self._coverage.is_guarded("parser.plugins"):
            self._degraded = self._degraded_documents()
            parsers = Parsers(self._registry, self._need, self._set_probe, self._degraded)
            self._undo.callback(parsers.end)
            parsers.begin()
            self._shadow(PARSE_WORKER, parsers.working(getattr(rag, PARSE_WORKER)))
        self._wrap_lifecycle()

    def _change_sdks(self) -> None:
        for name in filter(sys.modules.__contains__, _SDKS):
            for change, loss in _SDK_CHANGES:
                try:
                    self._undo.callback(change(sys.modules[name]))
                except UnsupportedCallError as error:
                    self._coverage.add(f"sdk.{name}", Cover.UNGUARDED, f"{loss}. {error}")

    def _degraded_documents(self) -> DegradedDocuments | None:
        """Degraded documents, if the settings want any and recovery can parse them anew."""
        settings, seam = self._registry.settings, "parser.degraded"
        after = settings.ingest_degraded_after
        if after is None:
            return None
        if not (seam in self._coverage and self._coverage.is_guarded(seam) and settings.recovery):
            _log.warning("RESILIENCE_INGEST_DEGRADED_AFTER has no effect: %s", _NO_ANEW)
            return None
        for name, override in Replacing(self._rag).method_overrides():
            self._shadow(name, override)
        return DegradedDocuments(self._rag, self._registry, after)

    def _guard_storages(self) -> None:
        for attribute, storage in _storages(self._rag):
            try:
                guard = guard_storage(storage, registry=self._registry)
            except UnsupportedCallError as error:
                self._coverage.add(f"storage.{attribute}", Cover.UNGUARDED, str(error))
                continue
            self._undo.callback(release_storage, storage)
            lost = {component} if (component := _LOST_BY_STORAGE.get(attribute)) else set()
            self._ingest_dependencies.add(guard.name)
            self._lost_with[guard.name] = self._lost_with.get(guard.name, frozenset()) | lost
        if (answers := getattr(self._rag, "llm_response_cache", None)) is not None:
            self._shadow("get_by_id", without_invalid_answers(answers), of=answers)

    async def _guard_functions(self) -> None:
        rag, is_guarded = self._rag, self._coverage.is_guarded
        if "llm" in self._coverage:  # LightRAG 1.4 has no roles
            if is_guarded("llm"):
                await self._replace(MODEL, rag.llm_model_func)
        elif is_guarded("llm.query"):
            self._build_role = getattr(rag, WRAP_ROLE)
            # Undone in reverse: the original builder is back before it rebuilds the roles.
            self._undo.push_async_callback(self._restore_roles)
            self._shadow(WRAP_ROLE, self._wrap_role)
            await self._rebuild_roles()
        if rag.embedding_func is not None and is_guarded("embedding"):
            await self._replace(EMBEDDING, rag.embedding_func.func)
        if rag.rerank_model_func is not None and is_guarded("rerank"):
            await self._replace(RERANK, rag.rerank_model_func)

    async def undo(self) -> None:
        """Restore everything."""
        await self._undo.aclose()

    def _wrap_lifecycle(self) -> None:
        """Recover and count documents while the storages are open, and flush them at the end."""
        initialize, finalize = self._rag.initialize_storages, self._rag.finalize_storages

        @functools.wraps(initialize)
        async def initialize_storages() -> None:
            await initialize()
            self._begin_background()

        @functools.wraps(finalize)
        async def finalize_storages() -> None:
            await self._end_background()
            is_exit = self._registry.gate.is_closed and are_storages_initialized(self._rag)
            with allow_during_drain():
                if is_exit:
                    await save_answers(self._rag)
                await finalize()
            if is_exit:
                await asyncio.gather(*map(abandon, self._queues.values()))

        self._shadow("initialize_storages", initialize_storages)
        self._shadow("finalize_storages", finalize_storages)
        self._undo.push_async_callback(self._end_background)
        if are_storages_initialized(self._rag):
            self._begin_background()

    def _begin_background(self) -> None:
        if self._background:
            return
        self._background.append(DocumentCounts(self._rag, self._registry.events))
        if self._registry.settings.recovery and self._coverage.is_guarded("pipeline.recovery"):
            needed = self._ingest_dependencies
            recovery = Recovery(self._rag, self._registry, needed, self._degraded)
            self._background.append(recovery)
        for each in self._background:
            each.begin()
        for _, storage in _storages(self._rag):
            guard = guarding(storage)
            if guard is not None and not is_embedded(storage):
                self._set_probe(guard, storage_probe(storage))

    def _set_probe(self, guard: Guard, probe: Probe) -> None:
        before = self._probes.get(guard.name)
        young_for = self._registry.settings.query__max_outage
        self._probes[guard.name] = guard.set_probe(probe, loop=self._loop, young_for=young_for)
        if before is not None:
            before()

    def _end_probes(self, names: Iterable[str]) -> None:
        for name in names:
            if (end := self._probes.pop(name, None)) is not None:
                end()

    async def _end_background(self) -> None:
        guarded = (guarding(storage) for _, storage in _storages(self._rag))
        self._end_probes({it.name for it in guarded if it is not None})  # no closed client connects
        background, self._background = self._background, []
        for each in background:
            await each.end()

    def _shadow(self, name: str, method: Callable[..., Any], of: Any = None) -> None:
        """Set a method on an instance, the LightRAG by default, until `undo`."""
        instance = self._rag if of is None else of
        own = vars(instance)
        if name in own:
            self._undo.callback(setattr, instance, name, own[name])
        else:
            self._undo.callback(own.pop, name, None)
        setattr(instance, name, method)

    # ------------------------------------------------------------------ replacements

    def _query(self, name: str) -> Callable[..., Any]:
        method = self._query_time.around(self._raising_query(name))
        return with_query_events(method, self._registry, self._rag.workspace or "")

    def _raising_query(self, name: str) -> Callable[..., Any]:
        method = raise_on_dependency_error(getattr(self._rag, name))
        if self._degradation is None:
            return method
        return self._degradation.around(
            method, raise_on_dependency_error(getattr(type(self._rag), name))
        )

    def _components_of(self, dependency: str) -> frozenset[QueryComponent]:
        """What a query loses with a dependency."""
        family = dependency.partition(".")[0]
        return self._lost_with.get(dependency) or _LOST_BY_FAMILY.get(family, frozenset())

    async def _rebuild_roles(self) -> None:
        # An update without a change rebuilds the role's function and ends its old queue.
        roles = list(self._rag.role_llm_funcs)
        await asyncio.gather(*map(self._rag.aupdate_llm_role_config, roles))

    async def _restore_roles(self) -> None:
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
        roles = roles_of(self._rag)
        endpoints = {
            name: endpoint_of("llm", it.function, it.metadata, it.arguments)
            for name, it in roles.items()
        }
        guard = self._guard_of(endpoints[role], timeout, endpoints.values())
        options = {"hashing_kv": getattr(self._rag, "llm_response_cache", None), **model_kwargs}
        called = self._guarded(
            MODEL, function, guard, timeout, metadata=roles[role].metadata, options=options
        )
        queued = self._build_role(role, called, max_async, timeout, model_kwargs)
        return self._guard_queue(role, queued, guard)

    async def _replace(self, slot: FunctionSlot, old: Any) -> None:
        original = without_queue(old)
        timeout = slot.timeout(self._rag)
        arguments = self._rag.llm_model_kwargs if slot is MODEL else None
        guard = self._guard_of(endpoint_of(slot.name, original, None, arguments), timeout)
        called = self._guarded(slot, original, guard, timeout)
        queued = slot.new_queue(self._rag, called)
        slot.put(self._rag, self._guard_queue(slot.name, queued, guard))
        self._undo.push_async_callback(self._restore, slot, original)
        await retire(old)

    def _guarded(  # noqa: PLR0913 - two by name
        self,
        slot: FunctionSlot,
        function: Callable[..., Any],
        guard: Guard,
        timeout: float | None,
        *,
        metadata: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Callable[..., Any]:
        """A function under its guard, for the workers of a queue. Its probe gets the options."""
        attempt = metered(function, guard, takes_tracker=takes_tracker(function, metadata))
        if metadata is not None:
            vars(attempt)["__resilience_model__"] = metadata.get("model")  # for traces
        probed = under_contract(self._contract_of(slot), guard.name, function)
        self._set_probe(guard, probe := probe_of(slot.name, probed, **(options or {})))
        return GuardedCalls(
            attempt=attempt,
            guard=guard,
            times=lambda: self._registry.times_for(guard, _given(timeout)),
            contract=self._contract_of(slot),
            probe=probe,
            before=self._ingest.park_if_late if slot is MODEL else None,
        ).of(function)

    def _contract_of(self, slot: FunctionSlot) -> NewContract:
        if slot is EMBEDDING:
            return functools.partial(Embedding, self._rag.embedding_func.embedding_dim)
        if slot is RERANK:
            return Rerank
        return functools.partial(Completion, empty=EmptyAnswers())

    async def _restore(self, slot: FunctionSlot, original: Callable[..., Any]) -> None:
        replaced = self._queues[slot.name]
        self._queues[slot.name] = queued = slot.new_queue(self._rag, original)
        slot.put(self._rag, queued)
        await retire(replaced)

    def _guard_of(
        self, endpoint: Endpoint, timeout: float | None, beside: Iterable[Endpoint] = ()
    ) -> Guard:
        guard = self._registry.get_endpoint(endpoint, _given(timeout), beside)
        if endpoint.family != RERANK.name:
            self._need(guard)
        guard.count_tokens = self._count_tokens
        return guard

    def _need(self, guard: Guard) -> None:
        """Ingest needs a dependency."""
        self._ingest_dependencies.add(guard.name)

    def _guard_queue(
        self, name: str, queued: Callable[..., Any], guard: Guard
    ) -> Callable[..., Any]:
        """Around a queue: queries are rejected before they enter it, ingest waits outside it.

        A wait inside would hold one of the queue's few workers, and end at the queue's timeout.
        """
        queues = self._queues
        queues[name] = queued

        @functools.wraps(queued)
        async def call_queue(*args: Any, **kwargs: Any) -> Any:
            async def call() -> Any:
                return await into_queue(queues[name], guard, args, kwargs)

            return await call_guarded(guard, call, is_needed=name != RERANK.name)

        return call_queue


def _storages(rag: Any) -> Iterator[tuple[str, Any]]:
    for attribute in STORAGES:
        if (storage := getattr(rag, attribute, None)) is not None:
            yield attribute, storage


def _given(timeout: float | None) -> float:
    """Seconds that LightRAG gives an attempt; without a timeout its queue ends none."""
    return timeout if timeout is not None and timeout > 0 else math.inf
