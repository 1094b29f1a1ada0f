"""The one owner of what exists once in a process; it resets all that a fork must not copy.

Nothing else is module-level but constants, caches of pure functions (`lru_cache`), and context
variables: Python needs these at the top of a module, and their values belong to tasks.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakSet

__all__ = ["ForkAware", "ProcessLock", "ProcessState", "process"]


class ForkAware(Protocol):
    """An object with a part that a child process must not share."""

    def reset_after_fork(self) -> None:
        """Called in the child, before any other code there."""


T = TypeVar("T", bound=ForkAware)


class ProcessState(dict[type, Any]):
    """The parts of a process by class, each made on first use: an import has no side effect.

    A test that clears it begins as a new process does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._resettable: WeakSet[ForkAware] = WeakSet()
        self._is_registered = False

    if TYPE_CHECKING:

        def __getitem__(self, kind: type[T]) -> T:
            """The object of a class that the whole process shares."""
            ...

    def __missing__(self, kind: type[T]) -> T:
        made: T = self.setdefault(kind, kind())
        self.reset_in_children(made)
        return made

    def reset_in_children(self, resettable: ForkAware) -> None:
        """Reset an object in each process that is forked from this one, as long as it exists."""
        if not self._is_registered and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset_all)  # cannot be undone
            self._is_registered = True
        self._resettable.add(resettable)

    def _reset_all(self) -> None:
        for resettable in list(self._resettable):
            resettable.reset_after_fork()


process = ProcessState()


class ProcessLock:
    """A `threading.Lock` of this process: its holder may be a thread that no child has."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self.reset_after_fork()
        process.reset_in_children(self)

    def acquire(self, *, wait: bool = True) -> bool:
        """Acquire it; False if it is held and `wait` is False."""
        return self._lock.acquire(blocking=wait)

    def release(self) -> None:
        """Release it."""
        self._lock.release()

    def reset_after_fork(self) -> None:
        """In a child process: a new one, which is free."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
