"""Ingest and queries of a real LightRAG during a drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag import LightRAG, QueryParam

from lightrag_resilience import Guards, ShuttingDownError
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.draining.journal import AbandonedWork, Journal
from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.integrations.lightrag.recovery.failed_documents import FailureRecord
from lightrag_resilience.integrations.lightrag.work.ingest import (
    Ingest,
    IngestRun,
    _as_current,
    _joined,
    save_answers,
)
from lightrag_resilience.shutdown import Coordinator
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]
between_documents = pytest.mark.skipif(
    not hasattr(LightRAG, "process_single_document"), reason="LightRAG 1.4 has no such seam"
)

TEXTS = ["Ada founded Alderwick.", "Ada lives beside the river.", "Ada has a boat."]
RESUMABLE = {"pending", "parsing", "analyzing", "processing"}
QUICK = {
    "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.001",
    "RESILIENCE_DEFAULT__RETRY__MAX_BACKOFF": "0.002",
    "RESILIENCE_QUERY__PATIENCE": "0",
    "RESILIENCE_RECOVERY_DELAY": "0.05",
}
LONG = {"timeout": 90.0, "cancel_grace": 10.0, "close_timeout": 20.0}
LATE = {"timeout": 25.0, "cancel_grace": 10.0, "close_timeout": 12.0}  # 3 s for what is in flight


class Itself(Provider):
    """Is not copied: LightRAG copies its functions deeply, and what they belong to."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Provider:
        return self


class Gated(Itself):
    """A provider whose extractions wait until the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.asked: Counter[str] = Counter()

    async def complete(self, prompt: str, *, stream: bool = False, **more: Any) -> Any:
        if "Input Text" in prompt:
            self.begun.set()
            await self.go.wait()
        answer = await super().complete(prompt, stream=stream, **more)
        self.asked[prompt] += 1
        return answer


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(QUICK | {"RESILIENCE_RECOVERY": "false"} | variables))


@contextlib.asynccontextmanager
async def draining(
    guards: Guards, times: dict[str, float] = LONG, journal: Path | None = None
) -> AsyncIterator[Coordinator]:
    async with Coordinator(
        registry=guards, handle_signals=False, journal=journal, **times
    ) as coordinator:
        yield coordinator


async def start_drain(coordinator: Coordinator) -> None:
    """Start a drain, and return once it has started."""
    coordinator.request("SIGTERM")
    await coordinator.stopping.wait()


async def statuses(rag: Any) -> dict[str, int]:
    with allow_during_drain():
        counts = await rag.doc_status.get_status_counts()
    return {name: count for name, count in counts.items() if count and name != "all"}


async def begun(provider: Any, work: asyncio.Task[Any]) -> None:
    """Wait until work calls the model; it fails where it ends before."""
    waits = asyncio.create_task(provider.begun.wait())
    async with asyncio.timeout(60):
        await asyncio.wait([waits, work], return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        raise AssertionError(f"it has ended: {work}")


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - LightRAG publishes no event
            await asyncio.sleep(0.02)


async def all_processed_by_the_next_start(rag: Any) -> None:
    await unprotect(rag)
    await protect(rag, registry=registry(RESILIENCE_RECOVERY="true"))

    async def are_processed() -> bool:
        return await statuses(rag) == {"processed": len(TEXTS)}

    await until(are_processed)
    await unprotect(rag)


@between_documents
async def test_a_drain_finishes_the_document_under_way_and_starts_no_other(tmp_path: Path) -> None:
    provider = Gated()
    async with lightrag_on(provider, max_parallel_insert=1) as rag:
        guards = registry()
        await protect(rag, registry=guards)
        async with draining(guards, journal=tmp_path / "journal") as coordinator:
            ingest = asyncio.create_task(rag.ainsert(TEXTS))
            await begun(provider, ingest)
            await start_drain(coordinator)
            provider.go.set()
            await ingest
            report = await coordinator.drain()
            left = await statuses(rag)
        assert report.abandoned == ()
        assert left.pop("processed") == 1
        assert set(left) <= RESUMABLE
        assert sum(left.values()) == 2
        assert list(Journal(tmp_path / "journal").read()) == []
        await all_processed_by_the_next_start(rag)
        assert set(provider.asked.values()) == {1}


async def test_a_document_that_exceeds_the_drain_keeps_its_status_and_its_model_answers(
    tmp_path: Path,
) -> None:
    provider = Gated()
    text = " ".join(f"Ada knows number {number}." for number in range(40))
    async with lightrag_on(
        provider,
        max_parallel_insert=1,
        llm_model_max_async=2,
        chunk_token_size=100,
        chunk_overlap_token_size=0,
    ) as rag:
        guards = registry()
        await protect(rag, registry=guards)
        async with draining(guards, LATE, tmp_path / "journal") as coordinator:
            ingest = asyncio.create_task(rag.ainsert([text, *TEXTS[1:]], track_id="t-7"))
            await begun(provider, ingest)

            async def is_late() -> bool:
                return coordinator.is_near_deadline

            await start_drain(coordinator)
            await until(is_late)
            provider.go.set()  # what is under way ends now, in the time that is left
            report = await coordinator.drain()
            with pytest.raises(ShuttingDownError, match="did not end in time"):
                await ingest
        left = await statuses(rag)
        ended = left.pop("processed", 0)  # in the time that was left
        assert set(left) <= RESUMABLE, left
        assert sum(left.values()) == 3 - ended
        assert ended < 3
        documents = [each for each in report.abandoned if each.kind == "document"]
        assert [each.track for each in documents] == ["t-7"] * len(documents)
        ours = [each for each in report.abandoned if each.kind in {"task", "document"}]
        assert {(each.workspace, each.operation) for each in ours} == {(rag.workspace, "ingest")}
        assert tuple(Journal(tmp_path / "journal").read()) == report.abandoned
        done = dict(provider.asked)
        await all_processed_by_the_next_start(rag)
        assert done
        assert sum(provider.asked[prompt] - 1 for prompt in done) <= 1


async def test_an_unavailable_dependency_fails_no_document_during_a_drain() -> None:
    provider = Provider(fail=lambda kind: ConnectionRefusedError() if kind == "llm" else None)
    async with lightrag_on(provider) as rag:
        guards = registry(RESILIENCE_INGEST_PATIENCE="300")
        await protect(rag, registry=guards)

        async def is_tried() -> bool:
            return provider.count("llm") >= 3

        async with draining(guards) as coordinator:
            ingest = asyncio.create_task(rag.ainsert(TEXTS))
            await until(is_tried)
            await start_drain(coordinator)
            await coordinator.drain()
            with contextlib.suppress(ShuttingDownError):
                await ingest
        left = await statuses(rag)
        assert set(left) <= RESUMABLE, left
        provider.fail = lambda _: None
        await all_processed_by_the_next_start(rag)


@between_documents
async def test_a_user_can_still_cancel_the_pipeline_by_hand() -> None:
    provider = Gated()
    async with lightrag_on(provider, max_parallel_insert=1) as rag:
        await protect(rag, registry=registry())
        ingest = asyncio.create_task(rag.ainsert(TEXTS))
        await begun(provider, ingest)
        from lightrag.kg.shared_storage import get_namespace_data  # noqa: PLC0415 - after init

        status = await get_namespace_data("pipeline_status", workspace=rag.workspace)
        status["cancellation_requested"] = True
        provider.go.set()
        await ingest
        assert (await statuses(rag)).get("failed", 0) >= 2
        await unprotect(rag)


async def test_no_document_is_resumed_during_a_drain() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        guards = registry()
        await protect(rag, registry=guards)
        await rag.apipeline_enqueue_documents(TEXTS)
        async with draining(guards) as coordinator:
            await start_drain(coordinator)
            await rag.apipeline_process_enqueue_documents()
            with pytest.raises(ShuttingDownError):
                await rag.apipeline_enqueue_documents("Ada has another boat.")
            await coordinator.drain()
        assert await statuses(rag) == {"pending": len(TEXTS)}
        assert provider.calls == []
        await unprotect(rag)


async def test_a_cancelled_caller_ends_the_run() -> None:
    provider = Gated()
    async with lightrag_on(provider) as rag:
        guards = registry()
        await protect(rag, registry=guards)
        async with draining(guards) as coordinator:
            ingest = asyncio.create_task(rag.ainsert(TEXTS))
            await begun(provider, ingest)
            ingest.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ingest
            provider.go.set()  # LightRAG's queue calls to the end what it has begun
            report = await coordinator.drain()
            assert report.abandoned == ()
        await unprotect(rag)


# ---------------------------------------------------------------------- its parts


def abandoned(operation: str) -> list[AbandonedWork]:
    run = IngestRun(operation, "w")
    run.documents["doc-1"] = "t-7", 0.0
    return list(run.records(AbandonedWork("lightrag", "task", "outcome_unknown", 1.0, "SIGTERM")))


def test_a_resumable_run_is_journaled_as_idempotent() -> None:
    run, document = abandoned("ingest")
    assert (run.effect, run.operation, run.workspace) == ("idempotent_write", "ingest", "w")
    assert (document.document, document.track, document.parent) == ("doc-1", "t-7", run.id)
    assert document.id != run.id
    assert abandoned("delete")[0].effect == "unknown"


async def test_a_document_between_two_stages_keeps_its_status_unless_a_user_cancelled() -> None:
    guards = registry()
    ingest, run, published = Ingest(object(), guards), IngestRun("ingest", ""), list[Any]()

    async def mark(**given: Any) -> None:
        published.append(given)

    await ingest._mark_cancelled(mark, pipeline_status={})
    guards.gate.close()
    await ingest._mark_cancelled(mark, pipeline_status={"cancellation_requested": True})
    assert len(published) == 2
    with _as_current(run):
        await ingest._mark_cancelled(mark, pipeline_status={})
    await ingest._mark_cancelled(mark, pipeline_status={})
    assert (len(published), run.skipped) == (2, 1)


async def test_a_failed_flush_of_model_answers_does_not_stop_the_other_flushes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        llm_response_cache = None

    await save_answers(Broken())
    assert "could not be saved: AttributeError" in caplog.text


async def test_a_task_is_joined_until_it_is_done_however_it_handles_cancellation() -> None:
    async def stubborn(outcome: str) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if outcome == "fails":
                raise ValueError from None
        return outcome

    async def joined(outcome: str) -> str:
        return await _joined(asyncio.create_task(stubborn(outcome)))

    for outcome, error in (("goes on", None), ("fails", ValueError)):
        work = asyncio.create_task(joined(outcome))
        await asyncio.sleep(0.01)
        work.cancel()
        await asyncio.wait([work])
        assert type(work.exception()) is (error or type(None))


class Slow(Itself):
    """A provider whose answers wait until the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def complete(self, prompt: str, *, stream: bool = False, **more: Any) -> Any:
        self.begun.set()
        await self.go.wait()
        return await super().complete(prompt, stream=stream, **more)


async def test_a_drain_lets_a_running_query_finish_and_rejects_a_new_one() -> None:
    provider = Slow()
    provider.go.set()
    async with lightrag_on(provider) as rag:
        await rag.ainsert(TEXTS)
        guards = registry()
        await protect(rag, registry=guards)
        provider.go.clear()
        provider.begun.clear()
        async with draining(guards) as coordinator:
            ask = rag.aquery("Who founded Alderwick?", QueryParam(mode="hybrid"))
            asked = asyncio.create_task(coordinator.run(ask))
            await begun(provider, asked)  # its first call of a model: for keywords
            await start_drain(coordinator)
            with pytest.raises(ShuttingDownError):
                await rag.aquery("Who has a boat?", QueryParam(mode="naive"))
            provider.go.set()
            assert "Alderwick" in await asked
        await unprotect(rag)


async def test_finalizing_saves_model_answers_first_and_ends_the_queues() -> None:
    provider = Provider()
    order: list[str] = []
    async with lightrag_on(provider) as rag:
        guards = registry()
        await protect(rag, registry=guards)
        await rag.ainsert(TEXTS)
        flush, finalize = rag.llm_response_cache.index_done_callback, rag.full_docs.finalize

        async def noted_flush() -> None:
            order.append("answers")
            await flush()

        async def noted_finalize() -> None:
            order.append("storages")
            await finalize()

        rag.llm_response_cache.index_done_callback = noted_flush
        rag.full_docs.finalize = noted_finalize
        before = asyncio.all_tasks()
        async with draining(guards) as coordinator:
            coordinator.on_close(rag.finalize_storages)
            report = await coordinator.drain()
        assert report.failed_to_close == ()
        assert order[:2] == ["answers", "storages"]
        queue_workers = [task for task in before if "worker" in repr(task) and not task.done()]
        assert queue_workers == []
        await unprotect(rag)


async def test_a_document_that_failed_because_of_a_drain_is_retried() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        guards = registry(RESILIENCE_RECOVERY="true", RESILIENCE_RECOVERY_DELAY="300")
        await protect(rag, registry=guards)
        provider.fail = lambda kind: ShuttingDownError("llm") if kind == "llm" else None
        await rag.ainsert(TEXTS)
        assert await statuses(rag) == {"failed": len(TEXTS)}
        rows, _ = await rag.doc_status.get_docs_paginated(page=1, page_size=50)
        assert {FailureRecord.of(row.metadata).cause for _, row in rows} == {"transient"}
        provider.fail = lambda _: None
        await all_processed_by_the_next_start(rag)
