"""What a storage's method does: whether it may be repeated, and whether it is guarded at all."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any

__all__ = ["Effect", "effect_of", "methods_to_guard"]

_BASE = "lightrag.base"


class Effect(Enum):
    """What is left of a call that was made twice."""

    READ = "read"
    WRITE = "idempotent write"
    DESTRUCTION = "destructive"

    @property
    def is_idempotent(self) -> bool:
        """Whether a call whose outcome is unknown may be made again."""
        return self is not Effect.DESTRUCTION


_READS = ("get_", "has_", "count_", "list_", "resolve_", "search_")
_WORDS = {
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
"""The first two hold the connection itself, the last forgets what was never sent: none may be
refused."""


def effect_of(name: str) -> Effect | None:
    """What a method of that name does; None for one that is not guarded."""
    if name in _UNGUARDED or name.startswith("_"):
        return None
    if name in _WORDS:
        return _WORDS[name]
    if name.startswith(_READS):
        return Effect.READ
    if name.startswith("upsert"):
        return Effect.WRITE
    return Effect.DESTRUCTION if name.startswith(("delete", "remove_")) else None


def methods_to_guard(cls: type) -> Iterator[tuple[str, Any, Effect]]:
    """The methods that a storage's class has of its own, each with its name and effect.

    What it inherits from LightRAG's base calls these; and LightRAG looks at the class to see which
    of the base's methods it has replaced.
    """
    for name in dir(cls):
        effect = effect_of(name)
        owner = next(base for base in cls.__mro__ if name in vars(base) or base is object)
        method = inspect.getattr_static(cls, name)
        if effect and owner.__module__ != _BASE and inspect.iscoroutinefunction(method):
            yield name, method, effect
