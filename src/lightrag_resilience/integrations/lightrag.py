"""Protect a LightRAG instance: `await protect(rag)`.

Every LLM role, the embedding function and the rerank function go through a guard. Ingest waits for
a dependency that is away; a query fails at once, and with an error that says so: LightRAG itself
would answer ``None``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from lightrag.llm_roles import ROLES
from lightrag.utils import priority_limit_async_func_call

from lightrag_resilience.errors import DependencyError, ResilienceError, UnsupportedCallError
from lightrag_resilience.failures import classify, root_cause
from lightrag_resilience.guard import Guard
from lightrag_resilience.patience import patiently
from lightrag_resilience.registry import Guards, guards

from ._inner_retries import make_inner_retries_yield, restore_inner_retries

__all__ = ["QueryFailedError", "is_protected", "protect", "unprotect"]

_ATTRIBUTE = "_lightrag_resilience"
_QUERY_ROLES = frozenset({"keyword", "query"})
_QUERIES = ("aquery_llm", "aquery_data")


class QueryFailedError(DependencyError):
    """A query could not be answered because a dependency failed."""

    def summary(self) -> str:
        """What could not be done."""
        return f"The query was not answered: {self.dependency!r} failed"


class _Query:
    """A query under way, and the last failure of a guarded call in it."""

    __slots__ = ("dependency", "failure")

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.dependency = ""


_current_query: ContextVar[_Query | None] = ContextVar("lightrag_resilience_query", default=None)


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
    if is_protected(rag):
        return
    if not hasattr(rag, "_wrap_llm_role_func"):
        raise UnsupportedCallError(
            f"protect() takes a LightRAG of version 1.5.7 or later, not {type(rag).__name__}"
        )
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
    """What `protect` changed on one instance, and how to change it back."""

    def __init__(self, rag: Any, registry: Guards) -> None:
        self._rag = rag
        self._registry = registry
        self._patience = registry.settings.ingest_patience
        self._original_embedding: Any = None
        self._original_rerank: Any = None

    async def apply(self) -> None:
        make_inner_retries_yield()
        self._rag._wrap_llm_role_func = self._wrap_role  # noqa: SLF001 - the one place roles are built
        await self._rebuild_roles()
        await self._replace_queues()
        for name in _QUERIES:
            setattr(self._rag, name, _honest(getattr(self._rag, name)))

    async def undo(self) -> None:
        rag = self._rag
        for name in (*_QUERIES, "_wrap_llm_role_func"):
            vars(rag).pop(name, None)
        await self._rebuild_roles()
        if self._original_embedding is not None:
            await _retire(rag.embedding_func.func)
            rag.embedding_func.func = _new_embedding_queue(rag, self._original_embedding)
        if self._original_rerank is not None:
            await _retire(rag.rerank_model_func)
            rag.rerank_model_func = _new_rerank_queue(rag, self._original_rerank)
        restore_inner_retries()

    # ------------------------------------------------------------------ the three kinds of function

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
        return _gated(queued, guard, self._patience, for_queries=role in _QUERY_ROLES)

    async def _replace_queues(self) -> None:
        rag = self._rag
        if rag.embedding_func is not None:
            # All storages share this object, so that changing its function reaches each of them.
            old = rag.embedding_func.func
            self._original_embedding = function = inspect.unwrap(old, stop=_is_not_queue)
            guard = self._guard_of("embedding", function)
            queued = _new_embedding_queue(rag, _guarded(function, guard))
            rag.embedding_func.func = _gated(queued, guard, self._patience)
            await _retire(old)
        if rag.rerank_model_func is not None:
            old = rag.rerank_model_func
            self._original_rerank = function = inspect.unwrap(old, stop=_is_not_queue)
            guard = self._guard_of("rerank", function)
            queued = _new_rerank_queue(rag, _guarded(function, guard))
            rag.rerank_model_func = _gated(queued, guard, self._patience, for_queries=True)
            await _retire(old)

    def _guard_of(
        self, family: str, function: Callable[..., Any], binding: str | None = None
    ) -> Guard:
        provider = binding or _provider(function)
        return self._registry.get(f"{family}.{provider}" if provider else family)


def _provider(function: Any) -> str | None:
    """The provider whose LightRAG binding a function is: ``openai`` for ``lightrag.llm.openai``."""
    while isinstance(function, functools.partial):
        function = function.func
    package, _, module = getattr(function, "__module__", "").rpartition(".")
    return module if package == "lightrag.llm" else None


def _is_not_queue(function: Any) -> bool:
    return not hasattr(function, "get_queue_stats")


def _new_embedding_queue(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    queue = priority_limit_async_func_call(
        rag.embedding_func_max_async,
        llm_timeout=rag.default_embedding_timeout,
        queue_name="Embedding func",
        concurrency_group="embedding",
    )
    queued: Callable[..., Any] = queue(function)
    return queued


def _new_rerank_queue(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    queue = priority_limit_async_func_call(
        rag.rerank_model_max_async,
        llm_timeout=rag.default_rerank_timeout,
        queue_name="Rerank func",
        concurrency_group="rerank",
    )
    queued: Callable[..., Any] = queue(function)
    return queued


async def _retire(queued: Any) -> None:
    """End a queue that nothing calls any more, after the work it holds."""
    await queued.shutdown(graceful=True)


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


def _gated(
    queued: Callable[..., Any], guard: Guard, patience: float, *, for_queries: bool = False
) -> Callable[..., Any]:
    """Around LightRAG's queue: queries are refused before they queue, ingest waits outside of it.

    A wait inside the queue would hold one of its few workers, and end at the queue's own timeout.
    """

    @functools.wraps(queued)
    async def gated(*args: Any, **kwargs: Any) -> Any:
        query = _current_query.get()
        if query is None and not for_queries:
            return await patiently(guard, lambda: queued(*args, **kwargs), patience=patience)
        try:
            guard.refuse_if_open()
            return await queued(*args, **kwargs)
        except Exception as error:
            if query is not None:
                query.failure, query.dependency = error, guard.name
            raise

    return gated


def _honest(method: Callable[..., Awaitable[dict[str, Any]]]) -> Callable[..., Any]:
    """A query method that raises where a dependency failed, instead of finding nothing."""

    @functools.wraps(method)
    async def honest(*args: Any, **kwargs: Any) -> dict[str, Any]:
        query = _Query()
        token = _current_query.set(query)
        try:
            answer = await method(*args, **kwargs)
        finally:
            _current_query.reset(token)
        if query.failure is not None and answer.get("status") == "failure":
            raise _query_error(query.failure, query.dependency)
        return answer

    return honest


def _query_error(error: Exception, dependency: str) -> Exception:
    if isinstance(error, ResilienceError):
        return error
    cause = root_cause(error)
    failure = classify(error)
    reason = f"with {type(cause).__name__} ({failure.kind.value})"
    failed = QueryFailedError(dependency, failure.retry_after, reason)
    failed.__cause__ = error
    return failed
