"""State that a forked process must reset: a thread that only its parent has may hold a lock."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Protocol
from weakref import WeakSet

__all__ = ["ForkAware", "ProcessLock", "reset_in_children"]


class ForkAware(Protocol):
    """An object with a part that a child process must not share."""

    def reset_after_fork(self) -> None:
        """Called in the child, before any other code there."""


_resettable: WeakSet[ForkAware] = WeakSet()
_is_registered = False


def reset_in_children(resettable: ForkAware) -> None:
    """Reset an object in each process that is forked from this one, as long as it exists."""
    global _is_registered  # noqa: PLW0603 - os.register_at_fork cannot be undone
    if not _is_registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reset_all)
        _is_registered = True
    _resettable.add(resettable)


def _reset_all() -> None:
    for resettable in list(_resettable):
        resettable.reset_after_fork()


class ProcessLock:
    """A `threading.Lock` of this process: a forked child gets a new one, which is free."""

    __slots__ = ("__weakref__", "_is_registered", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_registered = False  # on first use, so that an import has no side effect

    def acquire(self, *, wait: bool = True) -> bool:
        """Acquire it; False if it is held and `wait` is False."""
        if not self._is_registered:
            reset_in_children(self)
            self._is_registered = True
        return self._lock.acquire(blocking=wait)

    def release(self) -> None:
        """Release it."""
        self._lock.release()

    def reset_after_fork(self) -> None:
        """In a child process: its holder may be a thread that only the parent has."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
