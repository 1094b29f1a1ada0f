"""What the journal says of work in flight, and work that waits for nothing but its end."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from lightrag_resilience import Guards, Policy
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.in_flight import records_of
from lightrag_resilience.draining.journal import AbandonedWork, Journal
from lightrag_resilience.shutdown import Coordinator

pytestmark = pytest.mark.anyio

SOON = {"RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.001"}


@dataclasses.dataclass
class Said:
    """A task's account of itself."""

    is_parked: bool = True

    def records(self, task: AbandonedWork) -> Iterable[AbandonedWork]:
        yield dataclasses.replace(task, operation="index")
        yield dataclasses.replace(task, id="7", kind="document", parent=task.id, document="doc-1")


async def forever() -> None:
    await asyncio.Event().wait()


def coordinator(path: Path) -> Coordinator:
    return Coordinator(
        registry=Guards(settings=load_settings({})),
        handle_signals=False,
        timeout=60.0,
        cancel_grace=2.0,
        close_timeout=2.0,
        journal=path,
    )


async def test_parked_tasks_are_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    async with coordinator(tmp_path / "journal") as made:
        held = made.track_as(asyncio.create_task(forever()), "task", "the indexer", Said())
        report = await made.drain()
    assert time.monotonic() - began < 40
    assert held.cancelled()
    written = list(Journal(tmp_path / "journal").read())
    assert report.abandoned == tuple(written)
    assert [(each.kind, each.operation, each.document) for each in written] == [
        ("task", "index", ""),
        ("document", "", "doc-1"),
    ]
    assert written[1].parent == written[0].id
    assert report.drained == 0


async def test_a_parked_task_is_waited_for_while_other_work_goes_on(tmp_path: Path) -> None:
    other: list[str] = []

    async def work() -> None:
        await asyncio.sleep(1.0)
        other.append("done")

    async with coordinator(tmp_path / "journal") as made:
        made.track_as(asyncio.create_task(forever()), "task", "parked", Said())
        made.track(asyncio.create_task(work()))
        await made.drain()
    assert other == ["done"]


async def test_a_task_whose_details_say_it_goes_on_is_waited_for(tmp_path: Path) -> None:
    async with coordinator(tmp_path / "journal") as made:
        work = asyncio.create_task(asyncio.sleep(1.0, "done"))
        made.track_as(work, "task", "work", Said(is_parked=False))
        await made.drain()
    assert work.result() == "done"
    assert list(Journal(tmp_path / "journal").read()) == []


@pytest.mark.parametrize(
    ("name", "idempotent", "effect"),
    [
        ("llm.openai", None, "pure"),
        ("embedding", True, "pure"),
        ("storage.graph", True, "idempotent_write"),
        ("storage.graph", False, "unsafe_write"),
        ("storage.graph", None, "unknown"),
    ],
)
async def test_the_record_of_a_call_has_its_effect(
    name: str,
    idempotent: bool | None,  # noqa: FBT001 - a parameter of the test
    effect: str,
) -> None:
    guards = Guards(settings=load_settings({}))
    call = asyncio.create_task(guards.get(name).run(forever, (), {}, idempotent=idempotent))
    await asyncio.sleep(0.01)
    (running,) = guards.gate.running
    (record,) = records_of(running, "SIGTERM")
    assert (record.effect, record.state, record.attempt) == (effect, "in_flight", 1)
    assert record.started is not None
    assert 0 <= time.monotonic() - record.started < 60
    call.cancel()


async def test_the_record_of_a_call_has_its_attempt() -> None:
    guards = Guards(settings=load_settings(SOON))
    attempts: list[int] = []

    async def fails_first() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionRefusedError
        await forever()

    call = asyncio.create_task(guards.get("llm").call(fails_first))
    async with asyncio.timeout(30):
        while len(attempts) < 3:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    (running,) = guards.gate.running
    assert records_of(running, "SIGTERM")[0].attempt == 3
    call.cancel()


async def test_the_record_of_a_call_in_the_queue_has_the_state_queued() -> None:
    guards = Guards(settings=load_settings({}))
    guard = guards.get("llm", Policy.llm(max_concurrent=1))
    calls = [asyncio.create_task(guard.call(forever)) for _ in range(2)]
    await asyncio.sleep(0.01)
    states = [records_of(running, "")[0].state for running in guards.gate.running]
    assert states == ["in_flight", "queued"]
    for call in calls:
        call.cancel()
