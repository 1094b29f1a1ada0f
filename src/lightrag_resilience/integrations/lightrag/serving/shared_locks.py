"""The locks that LightRAG's workers share under Gunicorn, recovered when their holder is killed.

LightRAG 1.5 recovers its keyed locks from a dead process: its manager process has a table of
holders. It does not recover its two plain locks, around the shared dictionaries and around the
first load of a storage. If a worker is killed while it holds one, all others wait for ever, also
those that Gunicorn starts in its place. Here the plain locks use the same table.
"""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

from lightrag_resilience.integrations.lightrag.compat import (
    HOLDER_TABLE,
    INITIALIZE_SHARED,
    LOAD_FLAGS,
    LOAD_LOCK,
    LOCK,
)

__all__ = ["LoadFlags", "SharedLock", "recover_shared_locks"]

_MIN_PAUSE, _MAX_PAUSE = 0.002, 0.05  # seconds between two tries


class SharedLock:
    """A lock between processes, released by its holder or when its holder is dead.

    In each process one thread at a time acquires it: LightRAG ensures that.

    Args:
        table: LightRAG's table of holders.
        name: The lock's name in the table.
    """

    def __init__(self, table: Any, name: str) -> None:
        self._table = table
        self._name = f"lightrag_resilience:{name}"
        self.lease: str | None = None
        self.on_release: Callable[[], None] = lambda: None

    def acquire(self) -> bool:
        """Block this thread until the lock is acquired."""
        lease = uuid.uuid4().hex
        record = {"owner_pid": os.getpid(), "lease_id": lease}
        pause = _MIN_PAUSE
        while not self._table.try_acquire(self._name, record):
            time.sleep(pause)
            pause = min(pause * 2, _MAX_PAUSE)
        self.lease = lease
        return True

    def release(self) -> None:
        """Release the lock."""
        self.on_release()
        lease, self.lease = self.lease, None
        self._table.release(self._name, lease)


class LoadFlags:
    """Which storages are loaded. If a worker is killed while it loads one, another loads it.

    While the lock is held, a storage's flag is the holder's lease; the release turns it into True.
    So a flag left by a dead holder matches no current lease, and counts as not loaded.

    Args:
        flags: LightRAG's flags, a dictionary that all workers share.
        lock: The lock that is held while a storage is loaded.
    """

    def __init__(self, flags: Any, lock: SharedLock) -> None:
        self._flags = flags
        self._lock = lock
        self._loading: list[str] = []
        lock.on_release = self._mark_loaded

    def __contains__(self, namespace: str) -> bool:
        flag = self._flags.get(namespace)
        return flag is True or (flag is not None and flag == self._lock.lease)

    def __setitem__(self, namespace: str, value: object) -> None:
        self._flags[namespace] = self._lock.lease or value
        self._loading.append(namespace)

    def clear(self) -> None:
        """Clear all flags, when the server ends."""
        self._flags.clear()

    def _mark_loaded(self) -> None:
        while self._loading:
            self._flags[self._loading.pop()] = True


def recover_shared_locks(shared: ModuleType) -> Callable[[], None]:
    """Make workers that LightRAG starts from now on recover each other's locks.

    Does nothing if LightRAG has no table of holders: before 1.5, or with a single process.

    Args:
        shared: The module ``lightrag.kg.shared_storage``.

    Returns:
        A function that undoes it.
    """
    original = getattr(shared, INITIALIZE_SHARED)

    @functools.wraps(original)
    def initialize(*args: Any, **more: Any) -> None:
        original(*args, **more)
        table = getattr(shared, HOLDER_TABLE, None)
        names = (LOCK, LOAD_LOCK, LOAD_FLAGS)
        known = [getattr(shared, name, None) for name in names]
        if table is None or None in known or isinstance(known[0], SharedLock):
            return
        lock, load_lock = SharedLock(table, LOCK), SharedLock(table, LOAD_LOCK)
        flags = LoadFlags(known[2], load_lock)
        for name, value in zip(names, (lock, load_lock, flags), strict=True):
            setattr(shared, name, value)

    setattr(shared, INITIALIZE_SHARED, initialize)
    return lambda: setattr(shared, INITIALIZE_SHARED, original)
