"""What keeps the end of a drain: clients that are not closed, threads, the disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.shutdown import Coordinator

pytestmark = pytest.mark.anyio


def coordinator(**changes: Any) -> Coordinator:
    registry = Guards(settings=load_settings({}))
    times = {"timeout": 1.0, "cancel_grace": 0.3, "close_timeout": 0.3}
    return Coordinator(registry=registry, handle_signals=False, **(times | changes))


async def test_a_closer_that_fails_does_not_block_the_others() -> None:
    seen: list[str] = []

    def fail() -> None:
        raise OSError

    async def hang() -> None:
        await asyncio.sleep(60)

    made = coordinator()
    async with made:
        made.on_close(lambda: seen.append("closed"))
        made.on_close(fail)
        made.on_close(hang, timeout=0.1)
        report = await made.drain()
    assert seen == ["closed"]
    assert len(report.failed_to_close) == 2


async def test_a_closer_that_is_cancelled_does_not_block_the_others() -> None:
    seen: list[str] = []
    made = coordinator()

    async def end_poller() -> None:
        poller.cancel()
        await poller

    async with made:
        poller = asyncio.create_task(asyncio.sleep(60))
        made.on_close(lambda: seen.append("closed"))
        made.on_close(end_poller)
        report = await made.drain()
    assert seen == ["closed"]
    assert [name.rpartition(".")[2] for name in report.failed_to_close] == ["end_poller"]


async def test_a_closer_that_swallows_its_cancellation_blocks_nothing() -> None:
    seen: list[str] = []

    async def go_on() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(60)
            seen.append("ended")

    made = coordinator()
    async with made:
        made.on_close(lambda: seen.append("closed"))
        made.on_close(go_on, timeout=0.1)
        report = await made.drain()
    assert seen == ["cancelled", "closed"]
    assert report.seconds < 15
    assert [name.rpartition(".")[2] for name in report.failed_to_close] == ["go_on"]


async def test_a_drain_that_is_cancelled_while_closing_calls_no_further_closer() -> None:
    seen: list[str] = []
    begun = asyncio.Event()

    async def close() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("cancelled")

    made = await coordinator(timeout=60.0, close_timeout=50.0).__aenter__()
    made.on_close(lambda: seen.append("never"))
    made.on_close(close)
    made.begin("the test")
    await begun.wait()
    assert made._drain._result is not None
    made._drain._result.cancel()
    with pytest.raises(asyncio.CancelledError):
        await made.__aexit__(None, None, None)
    await asyncio.sleep(0)
    assert seen == ["cancelled"]


@pytest.fixture
def blocked() -> Iterator[threading.Event]:
    """What threads wait for, not for ever; set at the end."""
    goes_on = threading.Event()
    timer = threading.Timer(20.0, goes_on.set)
    timer.start()
    yield goes_on
    goes_on.set()
    timer.cancel()


async def test_the_journal_is_written_although_all_executor_threads_are_busy(
    tmp_path: Path, blocked: threading.Event
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    taken = loop.run_in_executor(None, blocked.wait)
    path = tmp_path / "journal"
    async with coordinator(journal=path) as made:
        made.track(asyncio.create_task(asyncio.sleep(60), name="the indexer"))
        report = await made.drain()
    assert not taken.done()  # so all this was before
    blocked.set()  # or the loop's end waits for the thread
    assert report.seconds < 15
    assert [each.name for each in Journal(path).read()] == ["the indexer"]


async def test_the_journal_is_written_although_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError(thread.name)

    path = tmp_path / "journal"
    async with coordinator(journal=path) as made:
        task = made.track(asyncio.create_task(asyncio.sleep(60), name="the indexer"))
        monkeypatch.setattr(threading.Thread, "start", refuse)
        await made.drain()
        monkeypatch.undo()
    assert task.cancelled()
    assert [each.name for each in Journal(path).read()] == ["the indexer"]


async def test_a_disk_that_hangs_does_not_block_the_drain(
    tmp_path: Path,
    blocked: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Journal, "write", lambda *_: blocked.wait())
    made = coordinator(journal=tmp_path / "j")
    async with made:
        made.track(asyncio.create_task(asyncio.sleep(60), name="the indexer"))
        report = await made.drain()
    assert not blocked.is_set()
    assert report.seconds < 15
    assert [each.name for each in report.abandoned] == ["the indexer"]
    assert "The journal takes too long" in caplog.text
