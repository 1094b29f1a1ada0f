"""Replaces methods of other libraries' classes, and restores them after the last user."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from lightrag_resilience.runtime.process_state import ProcessLock, process

__all__ = ["replace_methods"]


class _PatchLock(ProcessLock):
    """Held while a method is replaced or restored."""

    __slots__ = ()


def replace_methods(
    owners: Sequence[Any], name: str, make: Callable[[Any], Any]
) -> Callable[[], None]:
    """Replace the method `name` of each class by ``make(method)``; later users share it.

    Owners may be modules, and the attribute another module.

    Returns:
        A function that ends this use; after the last one the original is restored.
    """
    with process[_PatchLock]:
        for owner in owners:
            _acquire(owner, name, make)
    is_done = False

    def undo() -> None:
        nonlocal is_done
        with process[_PatchLock]:
            for owner in () if is_done else owners:
                _release(owner, name)
            is_done = True

    return undo


def _acquire(owner: Any, name: str, make: Callable[..., Any]) -> None:
    method = getattr(owner, name)
    if "__resilience_users__" not in vars(method):
        replacement = make(method)
        if callable(method):  # no module, whose names are not to be copied
            functools.update_wrapper(replacement, method)
        vars(replacement).update(__wrapped__=method, __resilience_users__=0)
        setattr(owner, name, method := replacement)
    vars(method)["__resilience_users__"] += 1


def _release(owner: Any, name: str) -> None:
    method = getattr(owner, name)
    users = vars(method).get("__resilience_users__")
    if users is not None:
        vars(method)["__resilience_users__"] = users - 1
        if users <= 1:
            setattr(owner, name, method.__wrapped__)
