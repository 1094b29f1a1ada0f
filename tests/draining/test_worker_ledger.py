"""What a worker has in flight is seen by its master, also after its death."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.supervisor import supervisor
from lightrag_resilience.draining.worker_ledger import LedgerEntry, WorkerLedger
from lightrag_resilience.shutdown import Coordinator


def line(name: str, began: float = 1.0) -> LedgerEntry:
    return LedgerEntry(uuid.uuid4().hex, name, "task", began)


@pytest.fixture
def ledger() -> Iterator[WorkerLedger]:
    made = WorkerLedger()
    supervisor().ledger = made
    yield made
    made.close()


def test_entries_are_read_as_they_were_written_the_oldest_first(ledger: WorkerLedger) -> None:
    young, old = line("young", 2.0), line("old", 1.5)
    number = ledger.add(young)
    ledger.add(old)
    assert ledger.entries() == [old, young]
    ledger.remove(number)
    assert ledger.entries() == [old]


def test_a_long_name_is_cut_off(ledger: WorkerLedger) -> None:
    ledger.add(line("ä" * 100))
    assert ledger.entries()[0].name == "ä" * 44


def test_the_longest_kind_is_read_as_it_was_written(ledger: WorkerLedger) -> None:
    for kind in ("websocket", "x" * 30):
        number = ledger.add(LedgerEntry(uuid.uuid4().hex, "GET /ws", kind, 1.0))
        assert [each.kind for each in ledger.entries()] == [kind]
        ledger.remove(number)


def test_a_task_that_is_tracked_twice_has_one_entry(ledger: WorkerLedger) -> None:
    problems: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: problems.append(what))
        guards = Guards(settings=load_settings({}))
        async with Coordinator(registry=guards, handle_signals=False) as coordinator:
            task = asyncio.create_task(asyncio.sleep(0))
            coordinator.track(coordinator.track(task))
            assert len(ledger.entries()) == 1
            await task
            await asyncio.sleep(0)

    asyncio.run(main())
    assert (ledger.entries(), problems) == ([], [])


def test_work_without_a_free_slot_is_counted(ledger: WorkerLedger) -> None:
    numbers = [ledger.add(line("work")) for _ in range(1026)]
    assert (len(ledger.entries()), ledger.overflow) == (1024, 2)
    for number in numbers:
        ledger.remove(number)
    assert (ledger.entries(), ledger.overflow) == ([], 0)


def test_the_ledger_keeps_the_path_of_the_journal(ledger: WorkerLedger) -> None:
    assert ledger.journal == ""
    ledger.journal = "/var/lib/ä/journal"
    assert ledger.journal == "/var/lib/ä/journal"
    ledger.journal = "/" + "too long" * 1000
    assert ledger.journal == "/var/lib/ä/journal"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_killed_process_leaves_its_entries(ledger: WorkerLedger) -> None:
    child = os.fork()
    if not child:
        ledger.add(line("work"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [each.name for each in ledger.entries()] == ["work"]


def test_tracked_work_has_an_entry_until_it_ends_or_is_recorded(
    ledger: WorkerLedger, tmp_path: Path
) -> None:
    async def main() -> None:
        async with Coordinator(
            registry=Guards(settings=load_settings({})),
            handle_signals=False,
            journal=tmp_path / "journal",
            timeout=1.0,
            cancel_grace=0.3,
            close_timeout=0.3,
        ) as coordinator:
            assert ledger.journal == str(tmp_path / "journal")
            short = coordinator.track(asyncio.create_task(asyncio.sleep(0.1), name="short"))
            coordinator.track(asyncio.create_task(asyncio.sleep(60), name="long"))
            assert sorted(each.name for each in ledger.entries()) == ["long", "short"]
            keys = {each.name: each.id for each in ledger.entries()}
            await short
            await asyncio.sleep(0)
            assert [each.name for each in ledger.entries()] == ["long"]
            coordinator.record_abandoned("the test")  # and it goes on
            assert ledger.entries() == []
            report = await coordinator.drain()
            assert [each.id for each in report.abandoned] == [keys["long"]]
            assert ledger.entries() == []

    asyncio.run(main())
