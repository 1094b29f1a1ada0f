"""The locks that LightRAG's workers share under Gunicorn, made to outlast a worker that is killed.

LightRAG 1.5 takes its keyed locks back from a dead process, by a table of holders in the process of
its manager. Its two plain locks, around the shared dictionaries and around the first load of a
storage, are never given back: where a worker is killed while it holds one, every other waits for
ever, also those that Gunicorn starts in its place. Here they go through the same table.
"""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["LoadFlags", "SharedLock", "recover_shared_locks"]

_START = "initialize_share_data"
_TABLE, _LOCK, _LOAD_LOCK = "_keyed_holder_table", "_internal_lock", "_data_init_lock"
_FLAGS = "_init_flags"
_SHORTEST, _LONGEST = 0.002, 0.05  # seconds between two tries


class SharedLock:
    """A lock of which one process at a time is the holder, until it gives it back or is dead.

    In each process one thread at a time waits for it: LightRAG sees to that.

    Args:
        table: LightRAG's table of holders.
        name: The lock's, in this table.
    """

    def __init__(self, table: Any, name: str) -> None:
        self._table = table
        self._name = f"lightrag_resilience:{name}"
        self.lease: str | None = None
        self.on_release: Callable[[], None] = lambda: None

    def acquire(self) -> bool:
        """Wait in this thread until it is held."""
        lease = uuid.uuid4().hex
        record = {"owner_pid": os.getpid(), "lease_id": lease}
        pause = _SHORTEST
        while not self._table.try_acquire(self._name, record):
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST)
        self.lease = lease
        return True

    def release(self) -> None:
        """Give it back."""
        self.on_release()
        lease, self.lease = self.lease, None
        self._table.release(self._name, lease)


class LoadFlags:
    """Which storages are loaded; one whose worker is killed while it loads it is loaded anew.

    Args:
        flags: LightRAG's own, in a dictionary of all workers.
        lock: What is held while a storage is loaded.
    """

    def __init__(self, flags: Any, lock: SharedLock) -> None:
        self._flags = flags
        self._lock = lock
        self._loading: list[str] = []
        lock.on_release = self._loaded

    def __contains__(self, namespace: str) -> bool:
        flag = self._flags.get(namespace)
        return flag is True or (flag is not None and flag == self._lock.lease)

    def __setitem__(self, namespace: str, value: object) -> None:
        self._flags[namespace] = self._lock.lease or value
        self._loading.append(namespace)

    def clear(self) -> None:
        """Forget them, at the end of the server."""
        self._flags.clear()

    def _loaded(self) -> None:
        while self._loading:
            self._flags[self._loading.pop()] = True


def recover_shared_locks(shared: ModuleType) -> Callable[[], None]:
    """Let workers that LightRAG shares its state among from now on outlast each other's death.

    It does nothing where LightRAG has no table of holders, as before 1.5, or has one process.

    Args:
        shared: The module ``lightrag.kg.shared_storage``.

    Returns:
        A function that takes it back.
    """
    original = getattr(shared, _START)

    @functools.wraps(original)
    def initialize(*args: Any, **more: Any) -> None:
        original(*args, **more)
        table = getattr(shared, _TABLE, None)
        parts = (_LOCK, _LOAD_LOCK, _FLAGS)
        known = [getattr(shared, part, None) for part in parts]
        if table is None or None in known or isinstance(known[0], SharedLock):
            return
        lock, load_lock = SharedLock(table, _LOCK), SharedLock(table, _LOAD_LOCK)
        for part, value in zip(
            parts, (lock, load_lock, LoadFlags(known[2], load_lock)), strict=True
        ):
            setattr(shared, part, value)

    setattr(shared, _START, initialize)
    return lambda: setattr(shared, _START, original)
