"""Guards around LightRAG's storages.

A storage keeps its identity: its class is exchanged for a subclass made at run time, so that every
reference to it stays good, and whatever looks at the class finds what it found before.
"""

from __future__ import annotations

import functools
from typing import Any

from lightrag_resilience.calls.call_context import current_call
from lightrag_resilience.config.policies import Policy
from lightrag_resilience.errors import CallRejected, PolicyError, UnsupportedCallError
from lightrag_resilience.integrations.lightrag.work.context import call_guarded, is_caused_by
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards, guards, resolve_guards
from lightrag_resilience.runtime.fork_safety import ProcessLock

from .storage_methods import Effect, methods_to_guard

__all__ = ["dependency_of", "guard_storage", "guarded_class", "guarding", "release_storage"]

_GUARD = "_resilience_guard"
_FOUND = "_resilience_found"
_ORIGINAL = "__resilience_original__"
_NAME = "resilience_name"
_SERVERS = {
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
_KINDS = {
    "BaseKVStorage": "kv",
    "BaseVectorStorage": "vector",
    "BaseGraphStorage": "graph",
    "DocStatusStorage": "doc_status",
}
_classes: dict[type, type] = {}
_lock = ProcessLock()


def guard_storage(storage: Any, *, registry: Guards | None = None) -> Guard:
    """Guard what a storage does, in place. Doing it twice is harmless.

    Storages of one server share one guard: ``storage.postgres``, ``storage.redis`` and so on.
    Embedded ones, and those of other implementations, have one for each kind: ``storage.kv``,
    ``storage.vector``, ``storage.graph``, ``storage.doc_status``. A class may say otherwise with
    ``resilience_name = "storage.mine"``.

    Reads and idempotent writes (`upsert…`) are retried; what destroys is repeated only where it was
    certainly not done. Embedded storages have no timeouts: nothing would be won by them.

    Args:
        storage: One of a LightRAG's storages.
        registry: The guards to use; those of the process by default.

    Raises:
        UnsupportedCallError: It is no storage, or its class cannot be exchanged.
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
    """
    found = type(storage)
    cls = guarded_class(found)
    guard = _guard_for(cls, resolve_guards(registry))
    try:
        storage.__class__ = cls
        setattr(storage, _GUARD, guard)
        vars(storage).setdefault(_FOUND, found)  # one chosen by its name was guarded before
    except (AttributeError, TypeError) as error:
        raise UnsupportedCallError(
            f"{type(storage).__name__} cannot be guarded in place; use guarded_class() instead"
        ) from error
    return guard


def release_storage(storage: Any) -> None:
    """Give a storage the class back that it was found with, where it is guarded in place."""
    if _GUARD in vars(storage):
        storage.__class__ = vars(storage).pop(_FOUND)
        delattr(storage, _GUARD)


def guarding(storage: Any) -> Guard | None:
    """The guard of a storage that is guarded in place, else None."""
    guard: Guard | None = vars(storage).get(_GUARD)
    return guard


def guarded_class(cls: type) -> type:
    """The subclass of a storage's class whose instances are guarded.

    Raises:
        UnsupportedCallError: It is no class of storages.
    """
    if hasattr(cls, _ORIGINAL):
        return cls
    if _kind_of(cls) is None:
        raise UnsupportedCallError(f"{cls.__name__} is no storage of LightRAG's")
    with _lock:
        if cls not in _classes:
            methods = {
                name: _guarded(method, effect) for name, method, effect in methods_to_guard(cls)
            }
            same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
            _classes[cls] = type(cls.__name__, (cls,), {**methods, **same, _ORIGINAL: cls})
        return _classes[cls]


def dependency_of(cls: type) -> str:
    """The name of the guard for storages of a class."""
    if own := getattr(cls, _NAME, None):
        return str(own)
    servers = (_SERVERS.get(base.__module__) for base in cls.__mro__)
    return f"storage.{next(filter(None, servers), None) or _kind_of(cls)}"


def _kind_of(cls: type) -> str | None:
    return next((_KINDS[base.__name__] for base in cls.__mro__ if base.__name__ in _KINDS), None)


def _guard_for(cls: type, registry: Guards) -> Guard:
    name = dependency_of(cls)
    is_embedded = name.rpartition(".")[2] in _KINDS.values() and _is_lightrags(cls)
    if not is_embedded:
        return registry.get(name)
    try:
        return registry.get(name, Policy.storage(attempt_timeout=None, total_timeout=None))
    except PolicyError:  # whoever made it first knows better
        return registry.get(name)


def _is_lightrags(cls: type) -> bool:
    original: type = getattr(cls, _ORIGINAL, cls)
    return original.__module__.startswith("lightrag.")


class _NotOursError(CallRejected):
    """Carries an error past a guard whose dependency is not to blame for it."""

    def __init__(self, error: Exception) -> None:
        super().__init__("", None, "")
        self.error = error


def _guarded(method: Any, effect: Effect) -> Any:
    """A method under its storage's guard; inside another one of the same guard it is itself."""

    @functools.wraps(method)
    async def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard = vars(self).get(_GUARD) or _guard_for(type(self), guards())
        call = current_call.get()
        if call is not None and call.is_within(guard):
            return await method(self, *args, **kwargs)

        foreign: list[Exception] = []

        async def attempt() -> Any:
            own = current_call.get()
            try:
                return await method(self, *args, **kwargs)
            except Exception as error:
                nested_error = None if own is None else own.nested_error
                if is_caused_by(error, nested_error) or _is_lightrags(type(error)):
                    foreign.append(error)
                    raise _NotOursError(error) from error
                raise

        async def whole() -> Any:
            try:
                return await guard.run(attempt, (), {}, idempotent=effect.is_idempotent)
            except _NotOursError as carrier:
                error = carrier.error
            raise error

        return await call_guarded(
            guard, whole, idempotent=effect.is_idempotent, is_foreign=foreign.__contains__
        )

    return guarded
