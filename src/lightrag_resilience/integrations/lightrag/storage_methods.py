"""Which methods of a storage are guarded, and which of them may be repeated."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any

from .compat import BASE_MODULE

__all__ = ["Effect", "effect_of", "methods_to_guard"]


class Effect(Enum):
    """What a method does to the stored data."""

    READ = "read"
    WRITE = "idempotent write"
    DESTRUCTION = "destructive"

    @property
    def is_idempotent(self) -> bool:
        """Whether a call whose outcome is unknown may be made again."""
        return self is not Effect.DESTRUCTION


_READ_PREFIXES = ("get_", "has_", "count_", "list_", "resolve_", "search_")
_EFFECTS = {
    "edge_degree": Effect.READ,
    "edge_degrees_batch": Effect.READ,
    "filter_keys": Effect.READ,
    "is_empty": Effect.READ,
    "node_degree": Effect.READ,
    "node_degrees_batch": Effect.READ,
    "query": Effect.READ,
    "index_done_callback": Effect.WRITE,
    "update_doc_status_fields": Effect.WRITE,
    "drop": Effect.DESTRUCTION,
    "repair_source_conflict": Effect.DESTRUCTION,
}
_UNGUARDED = frozenset({"initialize", "finalize", "drop_pending_index_ops"})
"""Methods that must never be rejected: they open and close the connection, or drop what was never
sent."""


def effect_of(name: str) -> Effect | None:
    """What a method of this name does; None if it is not guarded."""
    if name in _UNGUARDED or name.startswith("_"):
        return None
    if name in _EFFECTS:
        return _EFFECTS[name]
    if name.startswith(_READ_PREFIXES):
        return Effect.READ
    if name.startswith("upsert"):
        return Effect.WRITE
    return Effect.DESTRUCTION if name.startswith(("delete", "remove_")) else None


def methods_to_guard(cls: type) -> Iterator[tuple[str, Any, Effect]]:
    """The methods to guard of a storage's class: name, function and effect.

    Methods inherited from LightRAG's base classes stay as they are: they call these, and LightRAG
    checks which of them a class overrides.
    """
    for name in dir(cls):
        effect = effect_of(name)
        owner = next(base for base in cls.__mro__ if name in vars(base) or base is object)
        method = inspect.getattr_static(cls, name)
        if effect and owner.__module__ != BASE_MODULE and inspect.iscoroutinefunction(method):
            yield name, method, effect
