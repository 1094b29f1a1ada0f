"""Sync functions of guarded calls that run in threads: these cannot be ended, only named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["in_this_thread", "names_of_threads"]

_running: dict[object, str] = {}


def in_this_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function, which is known of until it ends."""
    key = object()
    _running[key] = getattr(function, "__qualname__", "function")
    try:
        return function(*args, **kwargs)
    finally:
        del _running[key]


def names_of_threads() -> list[str]:
    """What still runs in a thread, also where its result is no longer waited for."""
    return [f"thread of {name}" for name in list(_running.values())]
