"""Guards around LightRAG's storages.

A storage stays the same object: its class is replaced by a subclass made at run time. So every
reference to it stays valid, and LightRAG's checks of the class give the same results.
"""

from __future__ import annotations

import functools
from typing import Any

from lightrag_resilience.config.policies import Policy
from lightrag_resilience.errors import PolicyError, UnsupportedCallError
from lightrag_resilience.integrations.lightrag.work.nested_calls import call_with_nested
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards, guards, resolve_guards

from .compat import STORAGE_KINDS, server_of
from .storage_methods import Effect, methods_to_guard

__all__ = [
    "dependency_of",
    "guard_storage",
    "guarded_class",
    "guarding",
    "is_embedded",
    "release_storage",
]

_GUARD = "_resilience_guard"
_ORIGINAL_CLASS = "_resilience_class"
_ORIGINAL = "__resilience_original__"
_NAME = "resilience_name"


def guard_storage(storage: Any, *, registry: Guards | None = None) -> Guard:
    """Guard the methods of a storage, in place. A second call changes nothing.

    Storages of one server share one guard: ``storage.postgres``, ``storage.redis`` and so on.
    Embedded storages, and other implementations, have one guard for each kind: ``storage.kv``,
    ``storage.vector``, ``storage.graph``, ``storage.doc_status``. A class may choose another name
    with ``resilience_name = "storage.mine"``.

    Reads and idempotent writes (`upsert…`) are retried; deletions only if they were certainly not
    done. Embedded storages have no timeouts, which would gain nothing.

    Args:
        storage: One of a LightRAG's storages.
        registry: The guards to use; those of the process by default.

    Raises:
        UnsupportedCallError: It is no storage, or its class cannot be replaced.
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
    """
    found = type(storage)
    cls = guarded_class(found)
    guard = _guard_for(cls, resolve_guards(registry))
    try:
        storage.__class__ = cls
        setattr(storage, _GUARD, guard)
        # A storage chosen by name (by_name.py) has a guarded class from the start: restore that.
        vars(storage).setdefault(_ORIGINAL_CLASS, found)
    except (AttributeError, TypeError) as error:
        raise UnsupportedCallError(
            f"{type(storage).__name__} cannot be guarded in place; use guarded_class() instead"
        ) from error
    return guard


def release_storage(storage: Any) -> None:
    """Restore the class of a storage that is guarded in place."""
    if _GUARD in vars(storage):
        storage.__class__ = vars(storage).pop(_ORIGINAL_CLASS)
        delattr(storage, _GUARD)


def guarding(storage: Any) -> Guard | None:
    """The guard of a storage that is guarded in place; None for any other."""
    guard: Guard | None = vars(storage).get(_GUARD)
    return guard


def is_embedded(storage: Any) -> bool:
    """Whether a storage of LightRAG's runs in this process, with no server."""
    return _is_embedded(type(storage))


def guarded_class(cls: type) -> type:
    """The subclass of a storage's class whose instances are guarded.

    Raises:
        UnsupportedCallError: It is no class of storages.
    """
    if hasattr(cls, _ORIGINAL):
        return cls
    if _kind_of(cls) is None:
        raise UnsupportedCallError(f"{cls.__name__} is no storage of LightRAG's")
    return _guarded_subclass(cls)


@functools.cache
def _guarded_subclass(cls: type) -> type:
    methods = {name: _guarded(method, effect) for name, method, effect in methods_to_guard(cls)}
    same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {**methods, **same, _ORIGINAL: cls})


def dependency_of(cls: type) -> str:
    """The name of the guard for storages of a class."""
    if own := getattr(cls, _NAME, None):
        return str(own)
    servers = (server_of(base.__module__) for base in cls.__mro__)
    return f"storage.{next(filter(None, servers), None) or _kind_of(cls)}"


def _kind_of(cls: type) -> str | None:
    names = (base.__name__ for base in cls.__mro__)
    return next((STORAGE_KINDS[name] for name in names if name in STORAGE_KINDS), None)


def _guard_for(cls: type, registry: Guards) -> Guard:
    name = dependency_of(cls)
    if not _is_embedded(cls):
        return registry.get(name)
    try:
        return registry.get(name, Policy.storage(attempt_timeout=None, total_timeout=None))
    except PolicyError:  # its user has made it already, with a policy of its own
        return registry.get(name)


def _is_embedded(cls: type) -> bool:
    kind = dependency_of(cls).rpartition(".")[2]
    return kind in STORAGE_KINDS.values() and _is_lightrags(cls)


def _is_lightrags(cls: type) -> bool:
    original: type = getattr(cls, _ORIGINAL, cls)
    return original.__module__.startswith("lightrag.")


def _guarded(method: Any, effect: Effect) -> Any:
    """A method under its storage's guard."""

    @functools.wraps(method)
    async def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard = vars(self).get(_GUARD) or _guard_for(type(self), guards())
        return await call_with_nested(
            guard,
            lambda: method(self, *args, **kwargs),
            idempotent=effect.is_idempotent,
            is_foreign=lambda error: _is_lightrags(type(error)),
        )

    return guarded
