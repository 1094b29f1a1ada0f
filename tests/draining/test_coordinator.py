"""The coordinator: what ends, what is given up, what is closed, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from lightrag_resilience import (
    Guards,
    Policy,
    PolicyError,
    ShuttingDownError,
    TimeoutPolicy,
    deadline,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.draining.phases import Phase
from lightrag_resilience.events import DrainEnded, DrainProgress, Event, WorkAbandoned
from lightrag_resilience.shutdown import Coordinator

pytestmark = pytest.mark.anyio


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(variables))


def coordinator(guards: Guards | None = None, **changes: Any) -> Coordinator:
    times = {"timeout": 2.0, "cancel_grace": 0.3, "close_timeout": 0.5}
    return Coordinator(registry=guards or registry(), handle_signals=False, **(times | changes))


async def work(seconds: float = 0.2) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def test_work_in_flight_is_waited_for_before_closers_run_in_reverse() -> None:
    guards = registry()
    seen: list[str] = []
    async with coordinator(guards) as made:
        made.on_close(lambda: seen.append("first"))

        async def close_second() -> None:
            seen.append("second")

        made.on_close(close_second)

        async def noted() -> str:
            done = await work()
            seen.append("call")
            return done

        call = asyncio.create_task(guards.get("llm").call(noted))
        background = made.track(asyncio.create_task(work()))
        running = asyncio.create_task(made.run(work()))
        await asyncio.sleep(0.05)
        report = await made.drain()
    assert seen == ["call", "second", "first"]
    assert (report.drained, report.abandoned, report.stuck) == (3, (), ())
    assert [task.result() for task in (call, background, running)] == ["done"] * 3


async def test_a_call_under_a_deadline_is_waited_for_and_one_inside_of_it_is_a_part() -> None:
    guards = registry()

    async def outer() -> str:
        return await guards.get("embedding").call(work)

    async def under_deadline() -> str:
        with deadline(60.0):
            return await guards.get("llm").call(outer)

    async with coordinator(guards) as made:
        call = asyncio.create_task(under_deadline())
        await asyncio.sleep(0.05)
        report = await made.drain()
        assert call.done()
    assert (await call, report.drained, report.abandoned) == ("done", 1, ())


async def test_a_call_of_a_task_that_another_call_left_behind_is_waited_for() -> None:
    guards, left = registry(), list[asyncio.Task[str]]()

    async def leave() -> None:
        left.append(asyncio.create_task(guards.get("embedding").call(work)))

    async with coordinator(guards) as made:
        await guards.get("llm").call(leave)
        await asyncio.sleep(0.05)
        report = await made.drain()
        assert left[0].done()
    assert (await left[0], report.drained) == ("done", 1)


async def test_work_that_does_not_end_is_recorded_before_it_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    guards = registry()
    order: list[str] = []
    made = coordinator(guards, timeout=1.0, cancel_grace=0.2, close_timeout=0.2, journal=path)

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            order.append(f"cancelled with {len(list(Journal(path).read()))} in the journal")
            raise

    async with made:
        task = made.track(asyncio.create_task(long(), name="the indexer"))
        call = asyncio.create_task(guards.get("llm").call(work, 60.0))
        await asyncio.sleep(0.05)
        made.request("SIGTERM")
        await asyncio.sleep(0)
        report = await made.drain()
    assert order == ["cancelled with 2 in the journal"]
    assert task.cancelled()
    assert call.cancelled()
    written = list(Journal(path).read())
    assert tuple(written) == report.abandoned
    found = {(each.name, each.kind, each.state, each.signal) for each in written}
    assert found == {
        ("the indexer", "task", "outcome_unknown", "SIGTERM"),
        ("llm", "call", "in_flight", "SIGTERM"),
    }


@pytest.mark.parametrize("times", [{"attempt": 60.0}, {"attempt": None, "gap": 60.0}])
@pytest.mark.parametrize("is_tracked", [True, False])
async def test_the_reader_of_a_stream_is_cancelled_and_not_its_opener(
    times: Any,
    is_tracked: bool,  # noqa: FBT001 - a test's case
) -> None:
    guards = registry()
    guard = guards.get("llm", Policy(timeout=TimeoutPolicy(**times)))
    streams: asyncio.Queue[AsyncIterator[str]] = asyncio.Queue()

    async def words() -> AsyncIterator[str]:
        yield "one"
        await asyncio.sleep(60.0)

    async def begin() -> None:
        await streams.put(await guard.call(words))
        await asyncio.sleep(60.0)

    async def read() -> None:
        async for _ in await streams.get():
            pass

    async with coordinator(guards, timeout=1.0, cancel_grace=0.2, close_timeout=0.2) as made:
        worker, reader = asyncio.create_task(begin()), asyncio.create_task(read(), name="reader")
        if is_tracked:
            made.track(reader)
        await asyncio.sleep(0.05)
        report = await made.drain()
    assert [each.kind for each in report.abandoned] == ["task" if is_tracked else "stream"]
    assert (reader.cancelled(), worker.done(), report.stuck) == (True, False, ())
    worker.cancel()


async def test_a_task_that_swallows_cancellation_is_cancelled_again_and_reported_as_stuck() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 20:
                    raise

    made = coordinator(timeout=1.0, cancel_grace=0.5, close_timeout=0.2)
    async with made:
        task = made.track(asyncio.create_task(stubborn(), name="stubborn"))
        await asyncio.sleep(0)
        report = await made.drain()
    assert report.stuck == ("stubborn",)
    assert swallowed >= 2
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)


async def test_a_request_that_skips_waiting_cancels_work_in_flight() -> None:
    made = coordinator(timeout=30.0)
    async with made:
        running = asyncio.create_task(made.run(work(60.0)))
        await asyncio.sleep(0.05)
        made.request("SIGTERM")
        await asyncio.sleep(0.1)
        assert made.is_draining
        assert made.stopping.is_set()
        assert not running.done()
        made.request("SIGTERM", skip_waiting=True)
        with pytest.raises(ShuttingDownError, match="did not end in time"):
            await running
    report = await made.drain()
    assert report.seconds < 15


async def test_closers_do_not_run_in_the_context_that_the_signal_interrupted() -> None:
    held: ContextVar[str] = ContextVar("held", default="no lock")
    seen: list[str] = []

    async def holder() -> None:
        held.set("a lock")
        made.request("SIGTERM")  # as a signal's handler does, in the midst of it

    async with coordinator() as made:
        made.on_close(lambda: seen.append(held.get()))
        await asyncio.create_task(holder())
        await made.drain()
    assert seen == ["no lock"]


async def test_progress_has_phase_reason_and_work_in_flight() -> None:
    guards = registry()
    made = coordinator(guards, timeout=30.0)
    async with made:
        go_on = asyncio.Event()
        call = asyncio.create_task(guards.get("llm").call(go_on.wait))
        task = made.track(asyncio.create_task(go_on.wait(), name="ingest"))
        await asyncio.sleep(0.05)
        before = made.progress
        assert (before.phase, before.reason, before.left) == (Phase.RUNNING, "", math.inf)
        assert before.in_flight == {"ingest": 1, "llm": 1}
        made.request("SIGTERM")
        await asyncio.sleep(0.1)
        during = Coordinator(registry=guards, handle_signals=False)
        async with during:  # inside of it
            assert during.progress.phase is Phase.DRAINING
            assert during.progress.reason == "SIGTERM"
            assert 0 < during.progress.left < 30
        go_on.set()
        await made.drain()
        assert made.progress.phase is Phase.CLOSING
        assert made.progress.in_flight == {}
        await asyncio.gather(call, task)


async def test_run_rejects_new_work_during_a_drain() -> None:
    made = coordinator()
    async with made:
        await made.drain()
        with pytest.raises(ShuttingDownError):
            await made.run(work())


async def test_cancelling_the_caller_of_run_cancels_its_work() -> None:
    made = coordinator()
    async with made:
        running = asyncio.create_task(made.run(work(60.0)))
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        report = await made.drain()
    assert report.abandoned == ()


async def test_a_coordinator_inside_another_joins_its_drain() -> None:
    guards = registry()
    seen: list[str] = []
    async with coordinator(guards) as outer:
        async with coordinator(guards) as inner:
            inner.on_close(lambda: seen.append("inner"))
            task = inner.track(asyncio.create_task(work(0.3)))
        assert not outer.is_draining
        assert seen == []
        report = await inner.drain()
        assert task.done()
    assert seen == ["inner"]
    assert report.drained == 1
    async with coordinator(guards) as again:
        assert await again.run(work(0.0)) == "done"


async def test_a_tracked_task_that_awaits_the_drain_is_not_waited_for() -> None:
    made = coordinator(timeout=30.0)
    async with made:

        async def main() -> Any:
            return await made.drain()

        report = await made.run(main())
    assert report.seconds < 15
    assert report.abandoned == ()


async def test_the_log_names_work_in_flight_each_second(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightrag_resilience"):
        made = coordinator(timeout=4.0)
        async with made:
            made.track(asyncio.create_task(work(2.2), name="an ingest"))
            await asyncio.sleep(0)
            await made.drain("SIGTERM")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "Draining, requested by SIGTERM: 1 in flight"
    waits = [line for line in lines if line.startswith("Waiting")]
    assert len(waits) == 2
    assert "1 of an ingest" in waits[0]
    assert "1 ended, 0 given up, 0 stuck" in lines[-1]


async def test_a_kind_that_the_journal_does_not_accept_is_a_policy_error(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    async with coordinator(timeout=1.0, cancel_grace=0.3, close_timeout=0.3, journal=path) as made:
        task = asyncio.create_task(work(60.0))
        for kind in ("", "nightly import", "Who is Ada?", "ä", "x" * 31, "import\n"):
            with pytest.raises(PolicyError, match="The kind of the indexer is none"):
                made.track_as(task, kind, "the indexer")
        made.track_as(task, "Import-job", "the indexer")
        await made.drain()
    assert [each.kind for each in Journal(path).read()] == ["Import-job"]


async def test_a_coordinator_with_times_that_do_not_add_up_is_a_policy_error() -> None:
    guards = registry(RESILIENCE_SHUTDOWN_TIMEOUT="5", RESILIENCE_SHUTDOWN_CLOSE_TIMEOUT="4")
    with pytest.raises(PolicyError, match="A drain of 5 s has no room"):
        Coordinator(registry=guards)


async def test_a_joined_coordinator_shares_stopping_and_grace() -> None:
    guards = registry()
    async with coordinator(guards, timeout=60.0) as outer, coordinator(guards) as inner:
        inner.keep_draining_for(60.0)
        inner.begin("the test")
        assert inner.stopping.is_set()
        drain = asyncio.create_task(outer.drain())
        await asyncio.sleep(0.2)
        assert not drain.done()  # though nothing is in flight
        inner.keep_draining_for(0.0)
        assert (await drain).drained == 0


async def test_progress_and_result_of_a_drain_are_published() -> None:
    guards = registry()
    published: list[Event] = []
    guards.events.subscribe(published.append, DrainProgress, DrainEnded, WorkAbandoned)
    async with coordinator(guards, timeout=1.0, cancel_grace=0.2, close_timeout=0.2) as made:
        ends = made.track(asyncio.create_task(work(0.1)))
        made.track(asyncio.create_task(work(60.0)))
        report = await made.drain()
    assert ends.result() == "done"
    assert published[0] == DrainProgress("draining", 2)
    assert DrainProgress("cancelling", 1) in published
    assert published[-2:] == [WorkAbandoned("task"), DrainEnded(1, 1, 0, report.seconds)]


async def test_a_drain_with_nothing_in_flight_goes_straight_to_closing() -> None:
    guards = registry()
    published: list[Event] = []
    guards.events.subscribe(published.append, DrainProgress)
    async with coordinator(guards):
        pass
    assert published == [DrainProgress("closing", 0)]


async def test_a_name_of_work_cannot_forge_a_line_of_the_log_or_the_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    odd = "work\nERROR faked \x1b[31m\udc80" + "x" * 1000
    times: dict[str, Any] = {"timeout": 0.3, "cancel_grace": 0.1, "close_timeout": 0.1}
    async with coordinator(journal=tmp_path / "journal", **times) as made:
        made.track(asyncio.create_task(work(60.0), name=odd))
        hanging = asyncio.create_task(hang(), name=odd)
        made.track_as(hanging, "task", odd)
        await asyncio.sleep(0)
        report = await made.drain("the \x1b[2J test")
    names = [record.name for record in Journal(tmp_path / "journal").read()]
    shown = [*names, *(record.signal for record in report.abandoned), *report.stuck]
    assert names == ["workERROR faked [31m" + "x" * 180] * 2
    assert all(text.isprintable() for text in [*shown, *caplog.messages])


async def hang() -> None:
    """Not to be cancelled for a while."""
    until = asyncio.get_running_loop().time() + 1.0
    while asyncio.get_running_loop().time() < until:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)
