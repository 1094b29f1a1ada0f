"""Guarded storages for who configures LightRAG by names only: ``GuardedPGKVStorage`` and so on.

LightRAG looks a storage's class up in the module that its registry names: here, where an attribute
``Guarded…`` is the guarded class of that storage.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from lightrag.kg import STORAGE_ENV_REQUIREMENTS, STORAGE_IMPLEMENTATIONS, STORAGES

from .storages import guarded_class

__all__ = ["register_guarded_storages"]

_PREFIX = "Guarded"


def register_guarded_storages() -> Callable[[], None]:
    """Let LightRAG know each of its storages by a second name, under which it is guarded.

    ::

        register_guarded_storages()
        rag = LightRAG(kv_storage="GuardedPGKVStorage", vector_storage="GuardedPGVectorStorage")

    Storages that others have registered by then are among them. `protect(rag)` makes this needless.

    Returns:
        A function that takes it back.
    """
    added: list[tuple[list[str], str]] = []
    for kind in STORAGE_IMPLEMENTATIONS.values():
        names = kind["implementations"]
        for name in [name for name in names if name in STORAGES and not name.startswith(_PREFIX)]:
            guarded = _PREFIX + name
            if guarded not in names:
                names.append(guarded)
                STORAGES[guarded] = __name__
                STORAGE_ENV_REQUIREMENTS[guarded] = STORAGE_ENV_REQUIREMENTS.get(name, [])
                added.append((names, guarded))

    def take_back() -> None:
        while added:
            names, guarded = added.pop()
            names.remove(guarded)
            STORAGES.pop(guarded)
            STORAGE_ENV_REQUIREMENTS.pop(guarded)

    return take_back


def __getattr__(name: str) -> Any:
    original = name.removeprefix(_PREFIX)
    if original == name or original not in STORAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(STORAGES[original], package="lightrag")
    return _chosen_by_name(guarded_class(getattr(module, original)))


@functools.cache
def _chosen_by_name(cls: type) -> type:
    """A guarded class that lets all storages of its LightRAG see the names they know.

    LightRAG's PostgreSQL storages look there for ``PGVectorStorage``, to set up their one pool.
    """

    @functools.wraps(cls.__init__)  # type: ignore[misc]
    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        config = kwargs.get("global_config", {})
        for key, name in config.items():
            if key.endswith("_storage") and isinstance(name, str):
                config[key] = name.removeprefix(_PREFIX)
        cls.__init__(self, *args, **kwargs)  # type: ignore[misc]

    same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {"__init__": begin, **same})
