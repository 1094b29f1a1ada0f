"""The locks that LightRAG's workers share, of which one was held by a worker that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag.kg import shared_storage

from lightrag_resilience.integrations.lightrag.serving.shared_locks import (
    LoadFlags,
    SharedLock,
    recover_shared_locks,
)

pytestmark = [
    pytest.mark.lightrag,
    pytest.mark.skipif(
        not hasattr(shared_storage, "KeyedHolderTable"), reason="LightRAG 1.4 has no table"
    ),
]


@pytest.fixture
def table() -> Any:
    return shared_storage.KeyedHolderTable()


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def acquired_by(pid: int, lock: SharedLock, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        assert lock.acquire()


def test_a_lock_of_a_dead_holder_can_be_acquired(
    table: Any, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquired_by(dead, SharedLock(table, "x"), monkeypatch)
    lock = SharedLock(table, "x")
    assert lock.acquire()
    lock.release()
    assert table.holder_count() == 0


def test_a_lock_of_a_live_holder_is_waited_for(table: Any) -> None:
    held, waiting, got = SharedLock(table, "x"), SharedLock(table, "x"), threading.Event()
    held.acquire()

    def wait() -> None:
        waiting.acquire()
        got.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not got.wait(0.2)
    held.release()
    assert got.wait(10)
    thread.join()


def test_a_storage_is_loaded_once(table: Any) -> None:
    flags: dict[str, Any] = {}
    for first in (True, False):
        lock = SharedLock(table, "load")
        loads = LoadFlags(flags, lock)
        lock.acquire()
        assert ("docs" not in loads) == first
        if first:
            loads["docs"] = True
        assert "docs" in loads
        lock.release()
    assert flags == {"docs": True}
    loads.clear()
    assert not flags


def test_a_storage_is_loaded_again_if_its_loading_worker_was_killed(
    table: Any, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"texts": True}
    lock = SharedLock(table, "load")
    acquired_by(dead, lock, monkeypatch)
    LoadFlags(flags, lock)["docs"] = True
    lock = SharedLock(table, "load")
    loads = LoadFlags(flags, lock)
    assert lock.acquire()
    assert ("texts" in loads, "docs" in loads) == (True, False)


def started(**state: Any) -> ModuleType:
    """A module whose start sets its state, as LightRAG's does."""
    shared: Any = ModuleType("shared")
    shared.initialize_share_data = lambda _: vars(shared).update(state)
    take_back = recover_shared_locks(shared)
    shared.initialize_share_data(2)
    take_back()
    assert "recover" not in repr(shared.initialize_share_data)
    result: ModuleType = shared
    return result


def test_the_locks_of_several_workers_are_replaced(table: Any) -> None:
    shared: Any = started(
        _keyed_holder_table=table, _internal_lock="a", _data_init_lock="b", _init_flags={}
    )
    assert isinstance(shared._internal_lock, SharedLock)
    assert isinstance(shared._data_init_lock, SharedLock)
    assert isinstance(shared._init_flags, LoadFlags)


@pytest.mark.parametrize(
    "missing", [{"_keyed_holder_table": None}, {"_init_flags": None}, {"_internal_lock": None}]
)
def test_locks_stay_unchanged_if_a_name_is_missing(table: Any, missing: dict[str, Any]) -> None:
    state = {"_keyed_holder_table": table, "_internal_lock": 1, "_data_init_lock": 2}
    state |= {"_init_flags": {}} | missing
    shared = started(**state)
    assert {name: vars(shared)[name] for name in state} == state
