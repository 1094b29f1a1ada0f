"""Documents whose parser is down are read by LightRAG itself, and parsed anew after its return."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lightrag.parser.registry", reason="LightRAG before 1.5.2 has no such table")

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import DocumentDegraded, Event, RecoveryCompleted
from lightrag_resilience.integrations.lightrag.parsing.degraded import Replacing
from support.fake_parsers import Engine, FakeParser
from support.files_to_parse import pdf
from support.killed_ingest import Processes
from support.lightrag_rig import protected_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]
DOCUMENTS = 4
KILL_EVERY = int(os.environ.get("KILL_EVERY", "20"))  # writes; 1 once before a release
HEADING = "Parsed by its own parser. "
QUICK = {
    "RESILIENCE_PARSER__RETRY__INITIAL_BACKOFF": "0.01",
    "RESILIENCE_PARSER__BREAKER__CONSECUTIVE_FAILURES": "1",
    "RESILIENCE_RECOVERY_DELAY": "0.05",
    "RESILIENCE_INGEST_DEGRADED_AFTER": "0",
}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which LightRAG looks for files."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    monkeypatch.setenv("INPUT_DIR", str(folder))
    return folder


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(QUICK | variables))


async def enqueue(rag: Any, inputs: Path, engine: str, *names: str) -> None:
    for name in names:
        file = inputs / name
        text = f"Ada founded Alderwick. This is {name}."
        file.write_bytes(pdf(text) if name.endswith(".pdf") else text.encode())
        await rag.apipeline_enqueue_documents(
            "", file_paths=str(file), docs_format="pending_parse", parse_engine=engine
        )


async def rows_of(rag: Any) -> dict[str, Any]:
    rows, _ = await rag.doc_status.get_docs_paginated()
    return {row.file_path: row for _, row in rows}


async def formats(rag: Any) -> dict[str, tuple[str, str, str]]:
    """The status, format and parser of each document."""
    return {
        name: (row.status, row.metadata.get("parse_format"), row.metadata.get("parse_engine"))
        for name, row in (await rows_of(rag)).items()
    }


async def until_parsed(rag: Any, engine: str, count: int) -> None:
    async def are_parsed() -> bool:
        return [*(await formats(rag)).values()] == [("processed", "lightrag", engine)] * count

    await until(are_parsed)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - LightRAG publishes no event
            await asyncio.sleep(0.05)


def chunks_of(rag: Any) -> list[str]:
    """The texts of all chunks in the storage, whoever knows of them."""
    return sorted(row["content"] for row in rag.text_chunks._data.values())


@pytest.mark.parametrize(("engine", "suffix"), [("mineru", "pdf"), ("docling", "md")])
async def test_documents_of_a_dead_parser_are_read_at_once_and_parsed_anew_after_its_return(
    engine: Engine,
    suffix: str,
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    guards, seen = registry(), list[Event]()
    guards.events.subscribe(seen.append, DocumentDegraded, RecoveryCompleted)
    names = [f"{number}.{suffix}" for number in range(DOCUMENTS)]
    async with FakeParser(engine) as parser, protected_on(guards) as rag:
        parser.heading = HEADING
        parser.configure(monkeypatch)
        await enqueue(rag, inputs, engine, *names)
        parser.is_busy = True
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            work = group.create_task(rag.apipeline_process_enqueue_documents())
            await parser.after(3)
            await parser.die()
        assert work.done()
        assert set((await formats(rag)).values()) == {("processed", "raw", engine)}
        assert len(chunks_of(rag)) == DOCUMENTS
        assert not any(HEADING in text for text in chunks_of(rag))
        assert [it.dependency for it in seen if isinstance(it, DocumentDegraded)] == [
            f"parser.{engine}"
        ] * DOCUMENTS
        assert caplog.text.count("is parsed anew later") == DOCUMENTS
        parser.is_busy = False
        await parser.revive(forgets=True)
        await until_parsed(rag, engine, DOCUMENTS)
        chunks = chunks_of(rag)
        assert len(chunks) == DOCUMENTS
        assert all(HEADING in text for text in chunks)
        nodes = await rag.chunk_entity_relation_graph.get_all_nodes()
        assert {node["entity_id"] for node in nodes} == {"Ada", "Alderwick"}
        assert {len(node["source_id"].split("<SEP>")) for node in nodes} == {DOCUMENTS}

        async def are_counted() -> bool:
            runs = (it for it in seen if isinstance(it, RecoveryCompleted))
            return sum(run.parsed_anew for run in runs) == DOCUMENTS

        await until(are_counted)


async def test_a_document_is_not_degraded_for_single_failures_of_its_parser(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = registry(RESILIENCE_PARSER__BREAKER__CONSECUTIVE_FAILURES="100")
    async with FakeParser("mineru") as parser, protected_on(guards) as rag:
        parser.configure(monkeypatch)
        await enqueue(rag, inputs, "mineru", "0.pdf")
        parser.fault = "500"
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(rag.apipeline_process_enqueue_documents())
            await parser.after(3)
            parser.fault = "none"
        assert await formats(rag) == {"0.pdf": ("processed", "lightrag", "mineru")}


@pytest.mark.parametrize("name", ["scan.png", "empty.pdf", "known.pdf"])
async def test_a_document_waits_that_lightrag_cannot_read_or_whose_file_it_would_not_find_again(
    name: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeParser("mineru") as parser, protected_on(registry()) as rag:
        parser.configure(monkeypatch)
        await enqueue(rag, inputs, "mineru", name)
        if name == "empty.pdf":
            (inputs / name).write_bytes(pdf(""))
        if name == "known.pdf":  # another one, whose document was deleted
            (inputs / "__parsed__").mkdir()
            (inputs / "__parsed__" / name).write_bytes(pdf("An older text"))
        await parser.die()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            work = group.create_task(rag.apipeline_process_enqueue_documents())
            await asyncio.sleep(0.5)
            assert not work.done()
            await parser.revive()
        assert await formats(rag) == {name: ("processed", "lightrag", "mineru")}


async def test_a_degraded_document_that_turns_out_to_be_a_duplicate_leaves_nothing(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeParser("docling") as parser, protected_on(registry()) as rag:
        parser.configure(monkeypatch)
        parser.text = "The same text."
        await enqueue(rag, inputs, "docling", "first.md")
        await rag.apipeline_process_enqueue_documents()
        await parser.die()
        await enqueue(rag, inputs, "docling", "second.md")
        await rag.apipeline_process_enqueue_documents()
        assert len(chunks_of(rag)) == 2
        await parser.revive()

        async def is_known() -> bool:
            return (await formats(rag))["second.md"][0] == "failed"

        await until(is_known)
        assert len(chunks_of(rag)) == 1
        nodes = await rag.chunk_entity_relation_graph.get_all_nodes()
        assert {len(node["source_id"].split("<SEP>")) for node in nodes} == {1}


async def test_a_degraded_document_whose_file_is_gone_stays_as_it_is(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeParser("mineru") as parser, protected_on(registry()) as rag:
        parser.configure(monkeypatch)
        await parser.die()
        await enqueue(rag, inputs, "mineru", "0.pdf", "1.pdf")
        await rag.apipeline_process_enqueue_documents()
        (inputs / "__parsed__" / "0.pdf").unlink()
        await parser.revive()

        async def is_parsed() -> bool:
            return (await formats(rag))["1.pdf"] == ("processed", "lightrag", "mineru")

        await until(is_parsed)
        assert (await formats(rag))["0.pdf"] == ("processed", "raw", "mineru")
        assert "1 degraded document not parsed anew: no file here" in caplog.text


async def test_without_recovery_documents_wait_and_a_warning_says_so(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guards = registry(RESILIENCE_RECOVERY="false")
    async with FakeParser("mineru") as parser, protected_on(guards) as rag:
        assert "RESILIENCE_INGEST_DEGRADED_AFTER has no effect" in caplog.text
        parser.configure(monkeypatch)
        await parser.die()
        await enqueue(rag, inputs, "mineru", "0.pdf")
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            work = group.create_task(rag.apipeline_process_enqueue_documents())
            await asyncio.sleep(0.5)
            assert not work.done()
            await parser.revive()


@pytest.mark.once
@pytest.mark.no_cover
@pytest.mark.parametrize(("killed", "format_then"), [("degraded", "raw"), ("anew", "lightrag")])
async def test_a_kill_after_any_write_loses_no_document_and_leaves_none_twice(
    killed: str, format_then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeParser("mineru") as parser:
        parser.heading = HEADING
        parser.configure(monkeypatch)
        await parser.die()
        first = tmp_path / "first"
        (first / "inputs").mkdir(parents=True)
        for number in range(2):
            (first / "inputs" / f"{number}.pdf").write_bytes(pdf(f"Ada founded No {number}."))
        with Processes() as processes:
            if killed == "anew":
                whole = await processes.run(first, "mineru", "raw")
                assert whole["texts"] == ["Ada founded No 0.", "Ada founded No 1."]
                await parser.revive()
            # The first of each run are those of this package.
            for writes in (*range(1, 7), *range(7, 1000, KILL_EVERY)):
                folder = tmp_path / str(writes)
                shutil.copytree(first, folder)
                ended = await processes.run(folder, "mineru", format_then, kill_after=writes)
                await parser.revive()
                found = await processes.run(folder, "mineru", "lightrag")
                assert found["documents"] == [["processed", "lightrag", "mineru"]] * 2, writes
                assert sum(HEADING in text for text in found["texts"]) == 2, (writes, found)
                assert (found["vectors"], found["sources"]) == (2, [2, 2]), writes
                if ended is not None:
                    return
                if killed == "degraded":
                    await parser.die()
        pytest.fail("no run came to its end")


class Pipeline:
    """LightRAG's pipeline as far as it adds documents to the graph, and removes them."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.full_docs = self
        self.removal = asyncio.Event()

    async def get_by_id(self, document: str) -> dict[str, str]:
        return {"content": document}

    async def _mark_graph_mutation_started(self, doc_id: str, status_doc: object) -> None:
        del status_doc
        self.steps.append(f"add {doc_id}")

    async def _purge_stale_extraction_if_resuming(self, *, doc_id: str, **_: Any) -> None:
        self.steps.append(f"remove {doc_id}")
        await self.removal.wait()

    async def _mark_duplicate_after_parse(self, *, doc_id: str, **_: Any) -> bool:
        self.steps.append(f"parsed {doc_id}")
        return False

    async def process_single_document(self, *, doc_id: str, end: asyncio.Event) -> None:
        await self._mark_graph_mutation_started(doc_id, None)
        await end.wait()
        self.steps.append(f"end {doc_id}")


async def settled() -> None:
    """Let all tasks run as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_document_is_replaced_while_no_other_adds_to_the_graph() -> None:
    pipeline, end = Pipeline(), asyncio.Event()
    for name, override in Replacing(pipeline).method_overrides():
        setattr(pipeline, name, override)

    async def replace() -> None:
        given = dict.fromkeys(("file_path", "pipeline_status", "pipeline_status_lock"))
        status = SimpleNamespace(chunks_list=["chunk"])
        await pipeline._mark_duplicate_after_parse(doc_id="old", status_doc=status, **given)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(pipeline.process_single_document(doc_id="1", end=end))
        await settled()
        group.create_task(replace())
        await settled()
        assert pipeline.steps == ["add 1"]
        end.set()
        await settled()
        group.create_task(pipeline.process_single_document(doc_id="2", end=end))
        await settled()
        assert pipeline.steps == ["add 1", "end 1", "remove old"]
        pipeline.removal.set()
    assert sorted(pipeline.steps[3:]) == ["add 2", "end 2", "parsed old"]
