"""Documents that LightRAG refuses, since a process died where it had forgotten what they gave."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag import LightRAG
from lightrag.base import DocStatus

from lightrag_resilience import Guards, ShuttingDownError
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import Event, RecoveryCompleted
from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.integrations.lightrag.recovery.anchors import RecoveryAnchors
from lightrag_resilience.integrations.lightrag.recovery.failed_documents import is_refused
from support import lightrag_rig
from support.backends import BACKENDS, Backend, storage_set_of
from support.lightrag_rig import EXTRACTED, Provider, lightrag_on

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.lightrag,
    pytest.mark.skipif(
        not hasattr(LightRAG, "_union_doc_recovery_anchors"),
        reason="LightRAG 1.4 has no anchors, and refuses no document for want of them",
    ),
]

DOWN = ConnectionRefusedError("the provider is down")
DOCUMENT = "doc-ada"
TEXT = "Ada founded Alderwick."
ENTITIES, RELATIONS = ["Ada", "Alderwick"], [["Ada", "Alderwick"]]
STARTED = "graph_mutation_started"
FOUND = "Rebuilt the missing recovery anchors of"
QUICK = {"RESILIENCE_RECOVERY_DELAY": "0.05", "RESILIENCE_INGEST_PATIENCE": "0.1"}
NOT_CACHED = {"enable_llm_cache_for_entity_extract": False, "enable_llm_cache": False}


class _DeadError(Exception):
    """The process is dead: what follows is of no account."""


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(QUICK | variables))


class Disk:
    """What is on the disk of a LightRAG whose process was killed, again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._name = ""

    @property
    def options(self) -> dict[str, Any]:
        """For a LightRAG that starts on it: of a process of its own, as far as it knows."""
        options = {"working_dir": str(self._folder), "workspace": self._name}
        return options | NOT_CACHED if self._name else NOT_CACHED

    def kill(self, rag: Any) -> None:
        """Copy the files that a kill -9 would leave now."""
        self._name = f"{self._folder.name}{next(self._numbers)}"
        shutil.copytree(Path(rag.working_dir) / rag.workspace, self._folder / self._name)

    def rows(self, storage: str) -> dict[str, Any]:
        path = self._folder / self._name / f"kv_store_{storage}.json"
        rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return rows


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def killing(disk: Disk, rag: Any, moment: str) -> Callable[[str], Exception | None]:
    """Kill at the first call of a kind: ``llm`` is amid extraction, ``embedding`` after a merge."""
    is_dead = False

    def fail(kind: str) -> Exception | None:
        nonlocal is_dead
        if kind == moment and not is_dead:
            disk.kill(rag)
            is_dead = True
        return _DeadError() if is_dead else None

    return fail


async def killed_twice(disk: Disk, *, is_protected: bool) -> None:
    """One document: after its merge, and after the restart before the models have answered."""
    for moment in ("embedding", "llm"):
        provider = Provider()
        async with lightrag_on(provider, **disk.options) as rag:
            if is_protected:
                await protect(rag, registry=registry(RESILIENCE_RECOVERY="false"))
            if moment == "embedding":
                await rag.apipeline_enqueue_documents([TEXT], ids=[DOCUMENT])
            provider.fail = killing(disk, rag, moment)
            await rag.apipeline_process_enqueue_documents()
    row = disk.rows("doc_status")[DOCUMENT]
    assert row["status"] == "processing"
    assert row["chunks_list"]
    assert row["metadata"]["kg_write_state"] == STARTED


async def refused(rag: Any, document: str = DOCUMENT) -> None:
    """LightRAG's own pipeline fails a document for good."""
    await rag.apipeline_process_enqueue_documents()
    row = await rag.doc_status.get_by_id(document)
    assert row["status"] == "failed"
    assert is_refused(row["error_msg"])


async def without_anchors(rag: Any, *documents: str) -> None:
    """Failed documents without anchors, as LightRAG leaves them when it refuses."""
    await rag.full_entities.delete(list(documents))
    await rag.full_relations.delete(list(documents))
    for document in documents:
        await interrupted(rag, document)
    await rag.apipeline_process_enqueue_documents()


async def interrupted(rag: Any, document: str) -> None:
    """Its process has died, as far as the next run of the pipeline knows."""
    row = await rag.doc_status.get_by_id(document)
    await rag.doc_status.upsert({document: {**row, "status": DocStatus.PROCESSING}})


async def until_processed(rag: Any, count: int = 1) -> None:
    async with asyncio.timeout(30):
        while (await rag.doc_status.get_status_counts()).get("processed") != count:  # noqa: ASYNC110 - LightRAG publishes no event
            await asyncio.sleep(0.02)


async def anchors(rag: Any, document: str = DOCUMENT) -> tuple[Any, Any]:
    entities = await rag.full_entities.get_by_id(document) or {}
    relations = await rag.full_relations.get_by_id(document) or {}
    return entities.get("entity_names"), relations.get("relation_pairs")


async def test_lightrag_refuses_a_document_whose_process_was_killed_twice(disk: Disk) -> None:
    await killed_twice(disk, is_protected=False)
    assert disk.rows("full_entities") == {}
    async with lightrag_on(Provider(), **disk.options) as rag:
        await refused(rag)


async def test_a_refused_document_gets_its_anchors_rebuilt_and_is_resumed(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    await killed_twice(disk, is_protected=False)
    async with lightrag_on(Provider(), **disk.options) as rag:
        await protect(rag, registry=registry())
        await until_processed(rag)
        assert await anchors(rag) == (ENTITIES, RELATIONS)
        assert caplog.text.count(FOUND) == 1
        await unprotect(rag)


async def test_a_protected_document_killed_twice_needs_no_rebuilt_anchors(disk: Disk) -> None:
    await killed_twice(disk, is_protected=True)
    assert disk.rows("full_entities")[DOCUMENT]["entity_names"] == []
    assert disk.rows("full_relations")[DOCUMENT]["relation_pairs"] == []
    async with lightrag_on(Provider(), **disk.options) as rag:
        await rag.apipeline_process_enqueue_documents()
        await until_processed(rag)
        assert await anchors(rag) == (ENTITIES, RELATIONS)


async def test_a_document_interrupted_by_an_outage_needs_no_rebuilt_anchors() -> None:
    provider = Provider()
    async with lightrag_on(provider, **NOT_CACHED) as rag:
        off = {"RESILIENCE_RECOVERY": "false", "RESILIENCE_DEFAULT__BREAKER__MODE": "disabled"}
        await protect(rag, registry=registry(**off))
        await rag.apipeline_enqueue_documents([TEXT], ids=[DOCUMENT])
        for down in ("embedding", "llm"):
            provider.fail = {down: DOWN}.get
            await rag.apipeline_process_enqueue_documents()
            row = await rag.doc_status.get_by_id(DOCUMENT)
            assert (row["status"], row["metadata"]["kg_write_state"]) == ("failed", STARTED)
            await interrupted(rag, DOCUMENT)
        provider.fail = lambda _: None
        await rag.apipeline_process_enqueue_documents()
        await until_processed(rag)
        await unprotect(rag)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
async def test_the_contributions_of_documents_are_found_in_the_graph(backend: Backend) -> None:
    with storage_set_of(backend) as storage_set:
        async with storage_set.lightrag(Provider()) as rag:
            await check_contributions(rag)


async def check_contributions(rag: Any) -> None:
    await rag.ainsert([TEXT, f"Again: {TEXT}", "Another."], ids=["one", "two", "three"])
    await without_anchors(rag, "one", "two")
    assert await anchors(rag, "one") == (None, None)
    assert await RecoveryAnchors(rag).rebuild(["one", "two"]) == {"one", "two"}
    for document in ("one", "two", "three"):
        assert await anchors(rag, document) == (ENTITIES, RELATIONS)


async def test_a_document_with_rebuilt_anchors_is_removed_before_it_is_processed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with lightrag_on(Provider(), **NOT_CACHED) as rag:
        await rag.ainsert(TEXT, ids=[DOCUMENT])
        await without_anchors(rag, DOCUMENT)
        monkeypatch.setattr(lightrag_rig, "EXTRACTED", EXTRACTED.replace("Ada", "Grace"))
        await protect(rag, registry=registry())
        await until_processed(rag)
        await unprotect(rag)
        nodes = await rag.chunk_entity_relation_graph.get_all_nodes()
        assert {node["entity_id"] for node in nodes} == {"Alderwick", "Grace"}


async def test_a_failed_rebuild_changes_nothing_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.ainsert(TEXT, ids=[DOCUMENT])
        await without_anchors(rag, DOCUMENT)

        async def unreadable() -> list[dict[str, Any]]:
            raise OSError(TEXT)

        rag.chunk_entity_relation_graph.get_all_edges = unreadable
        before = await rag.doc_status.get_by_id(DOCUMENT)
        rebuilding = RecoveryAnchors(rag, tries=1)
        assert await rebuilding.rebuild([DOCUMENT]) == set()
        assert await rebuilding.rebuild([DOCUMENT]) == set()
        assert await anchors(rag) == (None, None)
        assert await rag.doc_status.get_by_id(DOCUMENT) == before
        logged = [
            each.getMessage() for each in caplog.records if "stay failed" in each.getMessage()
        ]
        assert len(logged) == 1
        assert "kg_integrity_repair" in logged[0]
        assert TEXT not in logged[0]


async def test_a_rejected_storage_call_is_no_failed_rebuild(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with lightrag_on(Provider()) as rag:
        guards = registry(RESILIENCE_RECOVERY="false")
        await protect(rag, registry=guards)
        guards.gate.close()
        with pytest.raises(ShuttingDownError):
            await RecoveryAnchors(rag).rebuild([DOCUMENT])
        guards.gate.open()
        assert "stay failed" not in caplog.text
        await unprotect(rag)


async def test_a_failed_rebuild_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.ainsert(TEXT, ids=[DOCUMENT])
        await without_anchors(rag, DOCUMENT)
        graph = rag.chunk_entity_relation_graph
        read, failures = graph.get_all_nodes, iter([OSError(), OSError()])

        async def unreadable_at_first() -> Any:
            if (error := next(failures, None)) is not None:
                raise error
            return await read()

        graph.get_all_nodes = unreadable_at_first
        guards = registry()
        runs: list[RecoveryCompleted] = []

        def listen(event: Event) -> None:
            if isinstance(event, RecoveryCompleted):
                runs.append(event)

        guards.events.subscribe(listen)
        await protect(rag, registry=guards)
        await until_processed(rag)
        assert caplog.text.count("stay failed") == 2
        assert [run.given_up for run in runs[:2]] == [1, 1]
        await unprotect(rag)


async def test_the_graph_is_not_read_without_a_refused_document() -> None:
    provider = Provider(fail=lambda kind: ValueError("bad key") if kind == "llm" else None)
    async with lightrag_on(provider) as rag:
        reads: list[str] = []
        graph = rag.chunk_entity_relation_graph
        graph.get_all_nodes = graph.get_all_edges = lambda: reads.append("read")
        await protect(rag, registry=registry())
        await rag.ainsert(TEXT, ids=[DOCUMENT])
        provider.fail = lambda _: None
        await rag.ainsert("Another.", ids=["another"])
        await asyncio.sleep(0.4)
        assert reads == []
        await unprotect(rag)


async def test_a_rebuild_does_not_change_documents_that_did_not_fail() -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.ainsert([TEXT, "Another."], ids=["lost", "kept"])
        await without_anchors(rag, "lost")
        row = await rag.doc_status.get_by_id("lost")
        await rag.doc_status.upsert({"lost": {**row, "status": DocStatus.PROCESSED}})
        assert await RecoveryAnchors(rag).rebuild(["lost", "kept", "gone"]) == {
            "lost",
            "kept",
            "gone",
        }
        assert await anchors(rag, "lost") == (None, None)
        assert await anchors(rag, "kept") == (ENTITIES, RELATIONS)


async def test_a_rebuild_ends_when_it_is_cancelled() -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.ainsert(TEXT, ids=[DOCUMENT])
        await without_anchors(rag, DOCUMENT)
        began = asyncio.Event()

        async def endless() -> None:
            began.set()
            await asyncio.Event().wait()

        rag.chunk_entity_relation_graph.get_all_nodes = endless
        rebuilding = asyncio.create_task(RecoveryAnchors(rag).rebuild([DOCUMENT]))
        async with asyncio.timeout(10):
            await began.wait()
        rebuilding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rebuilding
        assert await anchors(rag) == (None, None)
