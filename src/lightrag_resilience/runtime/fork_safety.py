"""What a forked process makes anew: a thread that only its parent has may hold a lock there."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Protocol
from weakref import WeakSet

__all__ = ["ForkAware", "ProcessLock", "reset_in_children"]


class ForkAware(Protocol):
    """Something of which a part is not to be shared with a child process."""

    def reset_after_fork(self) -> None:
        """Called in the child, before any other code of it."""


_renewed: WeakSet[ForkAware] = WeakSet()
_is_known = False


def reset_in_children(it: ForkAware) -> None:
    """Renew it in each process that is forked from this one, for as long as it is there."""
    global _is_known  # noqa: PLW0603 - a process can be told only once
    if not _is_known and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_renew)
        _is_known = True
    _renewed.add(it)


def _renew() -> None:
    for it in list(_renewed):
        it.reset_after_fork()


class ProcessLock:
    """A `threading.Lock` of this process: a child has one of its own, which nobody holds."""

    __slots__ = ("__weakref__", "_is_known", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_known = False  # importing a module that has a lock tells the system nothing

    def acquire(self, *, wait: bool = True) -> bool:
        """Take it; False if another holder has it and is not to be waited for."""
        if not self._is_known:
            reset_in_children(self)
            self._is_known = True
        return self._lock.acquire(blocking=wait)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def reset_after_fork(self) -> None:
        """In a child process: who holds it may be a thread that only the parent has."""
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
