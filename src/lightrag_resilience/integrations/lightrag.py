"""Protect a LightRAG instance: `await protect(rag)`.

Every LLM role, the embedding function and the rerank function go through a guard. Ingest waits for
a dependency that is away; a query fails at once, and with an error that says so: LightRAG itself
would answer ``None``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

from lightrag.llm_roles import ROLES
from lightrag.utils import priority_limit_async_func_call

from lightrag_resilience.errors import DependencyError, ResilienceError, UnsupportedCallError
from lightrag_resilience.failures import classify, root_cause
from lightrag_resilience.guard import Guard
from lightrag_resilience.patience import patiently
from lightrag_resilience.registry import Guards, guards

from ._inner_retries import make_inner_retries_yield, restore_inner_retries
from .sdks import tell_cut_off_streams, yield_retries

__all__ = ["QueryFailedError", "is_protected", "protect", "unprotect"]

_ATTRIBUTE = "_lightrag_resilience"
_QUERY_ROLES = frozenset({"keyword", "query"})
_QUERIES = ("aquery_llm", "aquery_data")


class QueryFailedError(DependencyError):
    """A query could not be answered because a dependency failed."""

    def summary(self) -> str:
        """What could not be done."""
        return f"The query was not answered: {self.dependency!r} failed"


class _Errand:
    """Work that must not wait, such as a query, and the last failure of a guarded call in it."""

    __slots__ = ("dependency", "failure")

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.dependency = ""


_current_errand: ContextVar[_Errand | None] = ContextVar("lightrag_resilience_errand", default=None)


async def protect(rag: Any, *, registry: Guards | None = None) -> None:
    """Put guards around everything a LightRAG calls at its providers. Doing it twice is harmless.

    Guards are named after the provider where LightRAG's own bindings are used (``llm.openai``,
    ``embedding.ollama``), else after the family (``llm``, ``embedding``, ``rerank``).

    Args:
        rag: A LightRAG 1.5.7 or later, before or after `initialize_storages`.
        registry: The guards to use; those of the process by default.

    Raises:
        SettingsError: A ``RESILIENCE_*`` variable is wrong. Nothing is changed then.
        UnsupportedCallError: `rag` is no LightRAG that can be protected.
    """
    if not hasattr(rag, "_wrap_llm_role_func"):
        raise UnsupportedCallError(
            f"protect() takes a LightRAG of version 1.5.7 or later, not {type(rag).__name__}"
        )
    if is_protected(rag):
        return
    protection = _Protection(rag, guards() if registry is None else registry)
    setattr(rag, _ATTRIBUTE, protection)
    await protection.apply()


async def unprotect(rag: Any) -> None:
    """Give a LightRAG its own functions back. Does nothing for one that is not protected."""
    protection: _Protection | None = vars(rag).pop(_ATTRIBUTE, None)
    if protection is not None:
        await protection.undo()


def is_protected(rag: Any) -> bool:
    """Whether `protect` was called on this instance, and `unprotect` was not."""
    return _ATTRIBUTE in vars(rag)


class _Protection:
    """What `protect` changed on one instance, and how to change it back.

    `_queues` holds the queue in force for each role, ``embedding`` and ``rerank``: a call that
    waits for its provider goes on in the present queue, not in one that was retired meanwhile.
    """

    def __init__(self, rag: Any, registry: Guards) -> None:
        self._rag = rag
        self._registry = registry
        self._patience = registry.settings.ingest_patience
        self._queues: dict[str, Callable[..., Any]] = {}
        self._give_sdks_back: Callable[[], None] = lambda: None
        self._let_cuts_pass: Callable[[], None] = lambda: None
        self._originals: dict[_Slot, Callable[..., Any]] = {}

    async def apply(self) -> None:
        rag = self._rag
        make_inner_retries_yield()
        self._give_sdks_back = yield_retries(*_imported_sdks())
        self._let_cuts_pass = tell_cut_off_streams(*_imported_sdks())
        rag._wrap_llm_role_func = self._wrap_role  # noqa: SLF001 - the one place roles are built
        await self._rebuild_roles()
        if rag.embedding_func is not None:
            await self._replace(_EMBEDDING, rag.embedding_func.func, for_queries=False)
        if rag.rerank_model_func is not None:
            await self._replace(_RERANK, rag.rerank_model_func, for_queries=True)
        for name in _QUERIES:
            setattr(rag, name, _honest(getattr(rag, name)))
        rag.finalize_storages = _without_patience(rag.finalize_storages)

    async def undo(self) -> None:
        rag = self._rag
        for name in (*_QUERIES, "finalize_storages", "_wrap_llm_role_func"):
            vars(rag).pop(name, None)
        await self._rebuild_roles()
        self._queues |= rag.role_llm_funcs
        for slot, original in self._originals.items():
            retired = self._queues[slot.name]
            self._queues[slot.name] = queued = slot.new_queue(rag, original)
            slot.put(rag, queued)
            await _retire(retired)
        restore_inner_retries()
        self._give_sdks_back()
        self._let_cuts_pass()

    # ------------------------------------------------------------------ what is put where

    async def _rebuild_roles(self) -> None:
        # An update that changes nothing builds the role's function anew and ends its old queue.
        await asyncio.gather(*(self._rag.aupdate_llm_role_config(spec.name) for spec in ROLES))

    def _wrap_role(
        self,
        role: str,
        function: Callable[..., Any],
        max_async: int,
        timeout: int,
        model_kwargs: dict[str, Any],
    ) -> Callable[..., Any]:
        binding = self._rag._role_llm_states[role].metadata.get("binding")  # noqa: SLF001
        guard = self._guard_of("llm", function, binding)
        build = type(self._rag)._wrap_llm_role_func  # noqa: SLF001
        queued = build(self._rag, role, _guarded(function, guard), max_async, timeout, model_kwargs)
        return self._gated(role, queued, guard, for_queries=role in _QUERY_ROLES)

    async def _replace(self, slot: _Slot, old: Any, *, for_queries: bool) -> None:
        original = inspect.unwrap(old, stop=lambda layer: not hasattr(layer, "get_queue_stats"))
        self._originals[slot] = original
        guard = self._guard_of(slot.name, original)
        queued = slot.new_queue(self._rag, _guarded(original, guard))
        slot.put(self._rag, self._gated(slot.name, queued, guard, for_queries=for_queries))
        await _retire(old)

    def _guard_of(
        self, family: str, function: Callable[..., Any], binding: str | None = None
    ) -> Guard:
        # A chain bears its first function's name, and must not share that one's guard.
        is_chain = hasattr(_inner(function), "__resilience_chain__")
        provider = None if is_chain else binding or _provider(function)
        return self._registry.get(f"{family}.{provider}" if provider else family)

    def _gated(
        self, name: str, queued: Callable[..., Any], guard: Guard, *, for_queries: bool
    ) -> Callable[..., Any]:
        """Around a queue: queries are refused before they queue, ingest waits outside of it.

        A wait inside would hold one of the queue's few workers, and end at the queue's timeout.
        """
        queues = self._queues
        queues[name] = queued

        @functools.wraps(queued)
        async def gated(*args: Any, **kwargs: Any) -> Any:
            errand = _current_errand.get()
            if errand is None and not for_queries:
                return await patiently(
                    guard, lambda: queues[name](*args, **kwargs), patience=self._patience
                )
            try:
                guard.refuse_if_open()
                return await queues[name](*args, **kwargs)
            except Exception as error:
                if errand is not None:
                    errand.failure, errand.dependency = error, guard.name
                raise

        return gated


@dataclass(frozen=True)
class _Slot:
    """Where LightRAG keeps a function that is no role's, and how it queues it."""

    name: str
    new_queue: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
    put: Callable[[Any, Callable[..., Any]], None]


def _queue_embedding(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    queue = priority_limit_async_func_call(
        rag.embedding_func_max_async,
        llm_timeout=rag.default_embedding_timeout,
        queue_name="Embedding func",
        concurrency_group="embedding",
    )
    return cast("Callable[..., Any]", queue(function))


def _put_embedding(rag: Any, function: Callable[..., Any]) -> None:
    # All storages share this object, so that changing its function reaches each of them.
    rag.embedding_func.func = function


def _queue_rerank(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    queue = priority_limit_async_func_call(
        rag.rerank_model_max_async,
        llm_timeout=rag.default_rerank_timeout,
        queue_name="Rerank func",
        concurrency_group="rerank",
    )
    return cast("Callable[..., Any]", queue(function))


def _put_rerank(rag: Any, function: Callable[..., Any]) -> None:
    rag.rerank_model_func = function
    # Queries take it from the configuration that the storages were made with.
    for storage in vars(rag).values():
        config = getattr(storage, "global_config", None)
        if isinstance(config, dict) and "rerank_model_func" in config:
            config["rerank_model_func"] = function


_EMBEDDING = _Slot("embedding", _queue_embedding, _put_embedding)
_RERANK = _Slot("rerank", _queue_rerank, _put_rerank)


def _imported_sdks() -> list[ModuleType]:
    """Those whose own retries would multiply the guard's."""
    return [sys.modules[name] for name in ("openai", "anthropic") if name in sys.modules]


async def _retire(queued: Any) -> None:
    """End a queue that nothing calls any more, after the work it holds."""
    await queued.shutdown(graceful=True)


def _provider(function: Any) -> str | None:
    """The provider whose LightRAG binding a function is: ``openai`` for ``lightrag.llm.openai``."""
    package, _, module = getattr(_inner(function), "__module__", "").rpartition(".")
    return module if package == "lightrag.llm" else None


def _inner(function: Any) -> Any:
    """What a partial calls."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


# ---------------------------------------------------------------------- around one function


def _guarded(function: Callable[..., Any], guard: Guard) -> Callable[..., Any]:
    """Inside LightRAG's queue: the guard."""

    async def begin(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    @functools.wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await guard.run(begin, args, kwargs)

    return guarded


def _honest(method: Callable[..., Awaitable[dict[str, Any]]]) -> Callable[..., Any]:
    """A query method that raises where a dependency failed, instead of finding nothing."""

    @functools.wraps(method)
    async def honest(*args: Any, **kwargs: Any) -> dict[str, Any]:
        query = _Errand()
        token = _current_errand.set(query)
        try:
            answer = await method(*args, **kwargs)
        except Exception as error:
            if error is not query.failure:
                raise
            answer = {"status": "failure"}
        finally:
            _current_errand.reset(token)
        if query.failure is not None and answer.get("status") == "failure":
            raise _query_error(query.failure, query.dependency)
        return answer

    return honest


def _without_patience(method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """A method whose calls fail as they would without `protect`: the end must not wait."""

    @functools.wraps(method)
    async def hasty(*args: Any, **kwargs: Any) -> Any:
        token = _current_errand.set(_Errand())
        try:
            return await method(*args, **kwargs)
        finally:
            _current_errand.reset(token)

    return hasty


def _query_error(error: Exception, dependency: str) -> Exception:
    if isinstance(error, ResilienceError):
        return error
    failure = classify(error)
    reason = f"with {type(root_cause(error)).__name__} ({failure.kind.value})"
    failed = QueryFailedError(dependency, failure.retry_after, reason)
    failed.__cause__ = error
    return failed
