"""What an outage left behind is resumed: real LightRAGs, with providers of the test."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

pytest.importorskip("lightrag")

from lightrag import LightRAG
from lightrag.base import DocStatus

from lightrag_resilience import Guards, State
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import Event, RecoveryCompleted
from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.integrations.lightrag.recovery.failed_documents import FailureRecord
from lightrag_resilience.shared_state.lease import Lease
from lightrag_resilience.testing.redis_server import RedisServer
from support import lightrag_rig
from support.lightrag_rig import EXTRACTED, Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

DOWN = ConnectionRefusedError("the provider is down")
TEXTS = ["Ada founded Alderwick.", "Ada lives beside the river.", "Ada has a boat."]
QUICK = {
    "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.001",
    "RESILIENCE_DEFAULT__RETRY__MAX_BACKOFF": "0.002",
    "RESILIENCE_QUERY__PATIENCE": "0",
    "RESILIENCE_DEFAULT__BREAKER__OPEN_FOR": "0.05",
    "RESILIENCE_INGEST_PATIENCE": "0.1",
    "RESILIENCE_RECOVERY_DELAY": "0.05",
}


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(QUICK | variables))


def runs_of(guards: Guards) -> list[RecoveryCompleted]:
    runs: list[RecoveryCompleted] = []

    def listen(event: Event) -> None:
        if isinstance(event, RecoveryCompleted):
            runs.append(event)

    guards.events.subscribe(listen)
    return runs


async def statuses(rag: Any) -> dict[str, int]:
    return {
        name: count for name, count in (await rag.doc_status.get_status_counts()).items() if count
    }


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - LightRAG publishes no event
            await asyncio.sleep(0.02)


def processed(rag: Any, count: int) -> Callable[[], Any]:
    async def all_are() -> bool:
        counts = await statuses(rag)
        return counts.get("processed", 0) == count == sum(counts.values())

    return all_are


async def test_documents_that_failed_in_an_outage_are_processed_after_it() -> None:
    provider = Provider(fail=lambda kind: DOWN if kind == "llm" else None)
    async with lightrag_on(provider) as rag:
        guards = registry(RESILIENCE_RECOVERY_ATTEMPTS="100", RESILIENCE_RECOVERY_DELAY="0.5")
        runs = runs_of(guards)
        await protect(rag, registry=guards)
        await rag.ainsert(TEXTS)
        assert await statuses(rag) == {"failed": len(TEXTS)}
        provider.fail = lambda _: None
        await until(processed(rag, len(TEXTS)))
        await until(lambda: has_run(runs))
        assert sum(run.requeued + run.resumed for run in runs) >= 1
        chunks = [row["chunks_list"] for row in await rag.doc_status.get_by_ids(await ids(rag))]
        assert sorted(map(len, chunks)) == [1, 1, 1]
        await unprotect(rag)


@pytest.mark.skipif(
    not hasattr(LightRAG, "_purge_doc_chunks_and_kg"), reason="LightRAG 1.4 takes nothing out"
)
async def test_a_failed_document_is_removed_from_the_graph_before_its_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = Provider(fail=lambda kind: DOWN if kind == "embedding" else None)
    async with lightrag_on(provider, enable_llm_cache_for_entity_extract=False) as rag:
        slow = registry(RESILIENCE_RECOVERY_ATTEMPTS="100", RESILIENCE_RECOVERY_DELAY="0.5")
        await protect(rag, registry=slow)
        await rag.ainsert(TEXTS[0])
        assert await statuses(rag) == {"failed": 1}
        monkeypatch.setattr(lightrag_rig, "EXTRACTED", EXTRACTED.replace("Ada", "Grace"))
        provider.fail = lambda _: None
        await until(processed(rag, 1))
        nodes = await rag.chunk_entity_relation_graph.get_all_nodes()
        assert {node["entity_id"] for node in nodes} == {"Alderwick", "Grace"}
        await unprotect(rag)


async def test_a_document_that_another_process_resumed_is_not_requeued() -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.apipeline_enqueue_documents(TEXTS[0])
        (document,) = await ids(rag)
        row = await rag.doc_status.get_by_id(document)
        failed = {"status": DocStatus.FAILED, "metadata": FailureRecord("transient").put_into({})}
        await rag.doc_status.upsert({document: row | failed})
        read = rag.doc_status.get_docs_paginated

        async def taken_up_after(**given: Any) -> Any:
            page = await read(**given)
            await rag.doc_status.upsert({document: row | {"status": DocStatus.PROCESSED}})
            return page

        rag.doc_status.get_docs_paginated = taken_up_after
        guards = registry()
        runs = runs_of(guards)
        await protect(rag, registry=guards)
        await asyncio.sleep(0.4)
        assert await statuses(rag) == {"processed": 1}
        assert sum(run.requeued for run in runs) == 0
        await unprotect(rag)


async def has_run(runs: list[RecoveryCompleted]) -> bool:
    """The event of a run is published when the run is over."""
    return bool(runs)


async def ids(rag: Any) -> list[str]:
    rows, _ = await rag.doc_status.get_docs_paginated(page=1, page_size=50)
    return [document for document, _ in rows]


async def test_a_document_with_a_fatal_cause_is_not_retried() -> None:
    provider = Provider(fail=lambda kind: ValueError("bad key") if kind == "llm" else None)
    async with lightrag_on(provider) as rag:
        guards = registry()
        runs = runs_of(guards)
        await protect(rag, registry=guards)
        await rag.ainsert(TEXTS)
        calls = provider.count("llm")
        await asyncio.sleep(0.5)
        assert provider.count("llm") == calls
        assert await statuses(rag) == {"failed": len(TEXTS)}
        assert sum(run.requeued for run in runs) == 0
        rows = await rag.doc_status.get_by_ids(await ids(rag))
        assert {row["metadata"]["resilience"]["cause"] for row in rows} == {"fatal"}
        await unprotect(rag)


async def test_a_document_is_retried_only_so_often() -> None:
    provider = Provider(fail=lambda kind: DOWN if kind == "llm" else None)
    async with lightrag_on(provider) as rag:
        guards = registry(
            RESILIENCE_RECOVERY_ATTEMPTS="2", RESILIENCE_LLM__BREAKER__MODE="disabled"
        )
        runs = runs_of(guards)
        await protect(rag, registry=guards)
        await rag.ainsert(TEXTS[0])

        async def given_up() -> bool:
            return bool(runs) and runs[-1].given_up == 1

        await until(given_up)
        assert [run.requeued for run in runs if run.requeued] == [1, 1]
        rows = await rag.doc_status.get_by_ids(await ids(rag))
        assert rows[0]["metadata"]["resilience"] == {"cause": "transient", "requeues": 2}
        await unprotect(rag)


async def test_interrupted_documents_are_resumed_at_the_start() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        await rag.apipeline_enqueue_documents(TEXTS)
        left, *_ = await ids(rag)
        row = await rag.doc_status.get_by_id(left)
        await rag.doc_status.upsert({left: {**row, "status": DocStatus.PROCESSING}})
        assert set(await statuses(rag)) == {"pending", "processing"}
        guards = registry()
        runs = runs_of(guards)
        await protect(rag, registry=guards)
        await until(processed(rag, len(TEXTS)))
        await until(lambda: has_run(runs))
        assert runs[0].resumed == len(TEXTS)
        await unprotect(rag)


async def test_no_recovery_runs_while_a_breaker_is_open() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        await rag.apipeline_enqueue_documents(TEXTS)
        guards = registry(
            RESILIENCE_LLM__BREAKER__OPEN_FOR="60", RESILIENCE_LLM__BREAKER__OPEN_MAX="60"
        )
        guards.get("llm").breaker.open()
        await protect(rag, registry=guards)
        await asyncio.sleep(0.4)
        assert await statuses(rag) == {"pending": len(TEXTS)}
        guards.get("llm").breaker.close()
        await until(processed(rag, len(TEXTS)))
        await unprotect(rag)


@pytest.mark.parametrize("when", ["unprotected", "finalized"])
async def test_recovery_ends_with_the_protection(when: str) -> None:
    async with lightrag_on(Provider()) as rag:
        before = asyncio.all_tasks()
        await protect(rag, registry=registry())
        assert len(asyncio.all_tasks() - before) >= 1
        await (unprotect(rag) if when == "unprotected" else rag.finalize_storages())
        watches = [task for task in asyncio.all_tasks() - before if "_watch" in repr(task)]
        assert watches == []
        assert "upsert" not in vars(rag.doc_status)


async def test_recovery_can_be_turned_off() -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.apipeline_enqueue_documents(TEXTS)
        await protect(rag, registry=registry(RESILIENCE_RECOVERY="false"))
        await asyncio.sleep(0.4)
        assert await statuses(rag) == {"pending": len(TEXTS)}


async def test_recovery_starts_with_a_later_initialization() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        await rag.apipeline_enqueue_documents(TEXTS)
        await rag.finalize_storages()
        await protect(rag, registry=registry())
        await rag.initialize_storages()
        await until(processed(rag, len(TEXTS)))


async def test_only_the_worker_that_holds_the_lease_resumes_documents() -> None:
    with RedisServer() as server:
        async with lightrag_on(Provider()) as rag:
            await rag.apipeline_enqueue_documents(TEXTS)
            guards = registry(RESILIENCE_REDIS_URL=server.url)
            other = Lease(server.url, "lr:", f"recovery:{rag.workspace}")
            ended = asyncio.Event()
            holding = asyncio.create_task(other.run(ended.wait))
            await asyncio.sleep(0.2)
            await protect(rag, registry=guards)
            await asyncio.sleep(0.5)
            assert await statuses(rag) == {"pending": len(TEXTS)}
            ended.set()
            await holding
            guards.get("llm").breaker.open()
            await until(lambda: closed(guards))
            await until(processed(rag, len(TEXTS)))
            await unprotect(rag)
            guards.close()


def held_by_a_dead_worker(server: RedisServer, rag: Any, seconds: float) -> None:
    with Redis.from_url(server.url) as redis:
        now, microseconds = redis.time()
        key = f"lr:lease:recovery%3A{rag.workspace}"
        redis.delete(key)
        redis.hset(key, "dead", str(int((now + seconds) * 1000 + microseconds / 1000)))


async def test_a_worker_without_the_lease_tries_again_when_it_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lightrag_resilience")
    with RedisServer() as server:
        async with lightrag_on(Provider()) as rag:
            await rag.apipeline_enqueue_documents(TEXTS)
            held_by_a_dead_worker(server, rag, 1.5)
            guards = registry(RESILIENCE_REDIS_URL=server.url)
            await protect(rag, registry=guards)
            await until(processed(rag, len(TEXTS)))
            assert caplog.text.count("Another worker holds the lease") == 1
            assert "Resuming 3 documents left by the previous run" in caplog.text
            await unprotect(rag)
            guards.close()


async def test_a_worker_that_lost_its_lease_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defaults: Any = Lease.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "seconds", 0.8)
    with RedisServer() as server:
        async with lightrag_on(Provider()) as rag:
            await rag.apipeline_enqueue_documents(TEXTS)
            guards = registry(RESILIENCE_REDIS_URL=server.url)
            await protect(rag, registry=guards)
            process, ended = rag.apipeline_process_enqueue_documents, asyncio.Event()
            runs: list[str] = []

            async def hang_at_first() -> None:
                if not runs:
                    runs.append("began")
                    held_by_a_dead_worker(server, rag, 1.0)  # while this one was suspended
                    try:
                        await ended.wait()
                    finally:
                        runs.append("stopped")
                await process()

            rag.apipeline_process_enqueue_documents = hang_at_first
            await until(processed(rag, len(TEXTS)))
            assert runs == ["began", "stopped"]
            await unprotect(rag)
            guards.close()


async def test_losing_the_lease_during_an_ingest_fails_no_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defaults: Any = Lease.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "seconds", 0.8)
    provider, asked, answered = Provider(), asyncio.Event(), asyncio.Event()
    complete = provider.complete

    async def slow(*args: Any, **more: Any) -> Any:
        asked.set()
        await answered.wait()
        return await complete(*args, **more)

    with RedisServer() as server:
        async with lightrag_on(provider, llm_model_func=slow) as rag:
            await rag.apipeline_enqueue_documents(TEXTS)
            guards = registry(RESILIENCE_REDIS_URL=server.url)
            await protect(rag, registry=guards)
            await asked.wait()
            held_by_a_dead_worker(server, rag, 2.0)  # while this one was suspended
            await asyncio.sleep(1.0)
            assert not (await statuses(rag)).keys() & {"failed", "processed"}
            answered.set()
            await until(processed(rag, len(TEXTS)))
            await unprotect(rag)
            guards.close()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("no")])
async def test_a_failed_run_does_not_end_recovery(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.apipeline_enqueue_documents(TEXTS)
        await protect(rag, registry=registry())
        process = rag.apipeline_process_enqueue_documents
        failures = [error]

        async def fail_at_first() -> None:
            if failures:
                raise failures.pop()
            await process()

        rag.apipeline_process_enqueue_documents = fail_at_first
        await until(processed(rag, len(TEXTS)))
        assert caplog.text.count("Documents could not be resumed") == 1
        await unprotect(rag)


@pytest.mark.parametrize("name", ["payments", "rerank"])
async def test_an_open_breaker_that_ingest_does_not_need_delays_no_run(name: str) -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.apipeline_enqueue_documents(TEXTS)
        guards = registry(
            RESILIENCE_DEFAULT__BREAKER__OPEN_FOR="60", RESILIENCE_DEFAULT__BREAKER__OPEN_MAX="60"
        )
        guards.get(name).breaker.open()
        await protect(rag, registry=guards)
        await until(processed(rag, len(TEXTS)))
        await unprotect(rag)


async def test_only_the_worker_that_resumes_documents_logs_it(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "lightrag_resilience")
    folder = {"working_dir": str(tmp_path), "workspace": tmp_path.name}
    async with lightrag_on(Provider(), **folder) as rag, lightrag_on(Provider(), **folder) as other:
        await rag.apipeline_enqueue_documents(TEXTS)
        all_runs = []
        for each in (rag, other):
            guards = registry()
            all_runs.append(runs_of(guards))
            await protect(each, registry=guards)
        await until(processed(rag, len(TEXTS)))
        await until(lambda: has_run([run for runs in all_runs for run in runs]))
        await asyncio.sleep(0.5)
        assert caplog.text.count("Resuming") == 1
        assert "Resuming 3 documents left by the previous run" in caplog.text
        assert sorted(sum(run.resumed for run in runs) for runs in all_runs) == [0, len(TEXTS)]
        await unprotect(rag)
        await unprotect(other)


async def test_documents_of_a_running_ingest_are_not_resumed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lightrag_resilience")
    provider, answered = Provider(), asyncio.Event()
    complete = provider.complete

    async def slow(*args: Any, **more: Any) -> Any:
        await answered.wait()
        return await complete(*args, **more)

    async with lightrag_on(provider, llm_model_func=slow) as rag:
        guards = registry()
        runs = runs_of(guards)
        await protect(rag, registry=guards)
        await asyncio.sleep(0.01)  # a server accepts no upload before
        ingest = asyncio.create_task(rag.ainsert(TEXTS))
        await asyncio.sleep(0.5)
        answered.set()
        await ingest
        await asyncio.sleep(0.5)
        assert await statuses(rag) == {"processed": len(TEXTS)}
        assert "Resuming" not in caplog.text
        assert runs == []
        await unprotect(rag)


async def closed(guards: Guards) -> bool:
    guard = guards.get("llm")
    if guard.breaker.state is State.OPEN:
        guard.breaker.close()
    return guard.breaker.state is State.CLOSED


async def test_documents_that_another_process_resumed_are_checked_again() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        await rag.apipeline_enqueue_documents(TEXTS)
        guards = registry()
        await protect(rag, registry=guards)
        process = rag.apipeline_process_enqueue_documents
        asked: list[int] = []

        async def busy_at_first() -> None:
            asked.append(1)
            if len(asked) > 2:
                await process()

        rag.apipeline_process_enqueue_documents = busy_at_first
        runs = runs_of(guards)
        await until(processed(rag, len(TEXTS)))
        await until(lambda: has_run(runs))
        assert len(asked) == 3
        assert [run.resumed for run in runs] == [len(TEXTS)]
        await unprotect(rag)


async def test_no_document_is_resumed_once_the_process_drains() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        await rag.apipeline_enqueue_documents(TEXTS)
        guards = registry()
        guards.gate.close()
        before = asyncio.all_tasks()
        await protect(rag, registry=guards)

        async def has_ended() -> bool:
            return not [task for task in asyncio.all_tasks() - before if "_watch" in repr(task)]

        await until(has_ended)
        guards.gate.open()
        assert await statuses(rag) == {"pending": len(TEXTS)}
        await unprotect(rag)
