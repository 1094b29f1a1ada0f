"""Guarded storages for a LightRAG that is configured by names: ``GuardedPGKVStorage`` and so on.

LightRAG imports a storage's class from the module that its registry names. For ``Guarded…`` that is
this module, whose `__getattr__` makes the guarded class.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from .compat import registered_storages, storage_registry
from .storages import guarded_class

__all__ = ["register_guarded_storages"]

_PREFIX = "Guarded"


def register_guarded_storages() -> Callable[[], None]:
    """Register each of LightRAG's storages under a second name, under which it is guarded.

    ::

        register_guarded_storages()
        rag = LightRAG(kv_storage="GuardedPGKVStorage", vector_storage="GuardedPGVectorStorage")

    That includes storages that applications have registered. Not needed with `protect(rag)`.

    Returns:
        A function that undoes it.

    Raises:
        UnsupportedCallError: This LightRAG does not have the registry that is known.
    """
    storages, implementations, requirements = storage_registry()
    added: list[tuple[list[str], str]] = []
    for kind in implementations.values():
        names = kind["implementations"]
        for name in [name for name in names if name in storages and not name.startswith(_PREFIX)]:
            guarded = _PREFIX + name
            if guarded not in names:
                names.append(guarded)
                storages[guarded] = __name__
                requirements[guarded] = requirements.get(name, [])
                added.append((names, guarded))

    def undo() -> None:
        while added:
            names, guarded = added.pop()
            names.remove(guarded)
            storages.pop(guarded)
            requirements.pop(guarded)

    return undo


def __getattr__(name: str) -> Any:
    original = name.removeprefix(_PREFIX)
    modules = registered_storages()
    if original == name or original not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(modules[original])
    return _with_plain_names(guarded_class(getattr(module, original)))


@functools.cache
def _with_plain_names(cls: type) -> type:
    """A guarded class that restores the plain names of storages in the shared configuration.

    LightRAG's PostgreSQL storages look for ``PGVectorStorage`` in it when they open their pool.
    """

    @functools.wraps(cls.__init__)  # type: ignore[misc]
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        config = kwargs.get("global_config", {})
        for key, name in config.items():
            if key.endswith("_storage") and isinstance(name, str):
                config[key] = name.removeprefix(_PREFIX)
        cls.__init__(self, *args, **kwargs)  # type: ignore[misc]

    same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {"__init__": init, **same})
