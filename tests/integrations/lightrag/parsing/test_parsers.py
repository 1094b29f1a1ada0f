"""Documents whose parser fails, in a protected LightRAG and in one alone beside it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

pytest.importorskip("lightrag.parser.registry", reason="LightRAG before 1.5.2 has no such table")

from lightrag.parser import registry as parser_registry
from lightrag.parser.base import BaseParser, ParseResult
from lightrag.parser.external.mineru import client
from lightrag.parser.registry import ParserSpec

from lightrag_resilience import Guards, ShuttingDownError
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.events import Event, StateChanged
from lightrag_resilience.integrations.lightrag import compat, unprotect
from lightrag_resilience.integrations.lightrag.parsing.requests import GuardedHttpx
from lightrag_resilience.shutdown import Coordinator
from support.fake_parsers import Engine, FakeParser, Fault
from support.lightrag_rig import Provider, lightrag_on, protected_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]
OUTAGE = float(os.environ.get("PARSER_OUTAGE", "1.5"))  # seconds; 20 once before a release
DOCUMENTS = 4
NAME = "parser.mineru"
FAULTS = ("dead", "hung", "500", "nonsense")
QUICK = {
    "RESILIENCE_PARSER__RETRY__INITIAL_BACKOFF": "0.01",
    "RESILIENCE_PARSER__TIMEOUT__ATTEMPT": "0.4",
    "RESILIENCE_INGEST_PATIENCE": str(OUTAGE + 20),
    "RESILIENCE_RECOVERY": "false",
}


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(QUICK | variables))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which LightRAG looks for files."""
    monkeypatch.setenv("INPUT_DIR", str(tmp_path))
    return tmp_path


async def ingest(
    rag: Any, inputs: Path, engine: str, name: str, documents: int = DOCUMENTS
) -> dict[str, int]:
    """How many documents have which status, after an ingest of files."""
    for number in range(documents):
        file = inputs / f"{name}-{number}.pdf"
        file.write_text(f"Ada founded Alderwick. This is document {number} of {name}.")
        await rag.apipeline_enqueue_documents(
            "", file_paths=str(file), docs_format="pending_parse", parse_engine=engine
        )
    await rag.apipeline_process_enqueue_documents()
    return await statuses(rag)


async def opened(guards: Guards) -> None:
    """Wait until the circuit of MinerU is open."""
    is_open = asyncio.Event()

    def see(event: Event) -> None:
        if isinstance(event, StateChanged) and (event.dependency, event.new) == (NAME, "open"):
            is_open.set()

    guards.events.subscribe(see, StateChanged)
    async with asyncio.timeout(30):
        await is_open.wait()


async def statuses(rag: Any) -> dict[str, int]:
    counts = await rag.doc_status.get_status_counts()
    return {status: count for status, count in counts.items() if count and status != "all"}


@pytest.mark.parametrize(
    ("engine", "fault"),
    [*(("mineru", fault) for fault in FAULTS), ("docling", "dead"), ("docling", "nonsense")],
)
async def test_each_document_is_processed_though_its_parser_fails_in_mid_ingest(
    engine: Engine, fault: Fault, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = registry(RESILIENCE_PARSER__BREAKER__CONSECUTIVE_FAILURES="1")
    async with (
        FakeParser(engine) as parser,
        lightrag_on(Provider()) as alone,
        protected_on(guards) as protected,
    ):
        parser.configure(monkeypatch)
        async with asyncio.timeout(60 + OUTAGE), asyncio.TaskGroup() as group:
            failing = group.create_task(parser.after(6))
            failing.add_done_callback(lambda _: group.create_task(parser.break_for(fault, OUTAGE)))
            without = group.create_task(ingest(alone, inputs, engine, "alone"))
            guarded = group.create_task(ingest(protected, inputs, engine, "protected"))
        assert guarded.result() == {"processed": DOCUMENTS}
        if fault != "hung":  # LightRAG alone hangs as long as its parser, up to two minutes
            assert without.result().get("failed", 0) > 0
        assert guards.get(f"parser.{engine}").breaker.snapshot().state.value == "closed"
        if fault == "dead":  # no document had to find out that it is back
            assert parser.requests["/health"] > 0


@pytest.mark.parametrize(
    ("engine", "forgets"), [("mineru", False), ("mineru", True), ("docling", True)]
)
async def test_a_file_is_uploaded_again_only_if_its_parser_has_forgotten_it(
    engine: Engine, inputs: Path, monkeypatch: pytest.MonkeyPatch, *, forgets: bool
) -> None:
    async with FakeParser(engine) as parser, protected_on(registry()) as rag:
        parser.configure(monkeypatch)
        parser.is_busy = True
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            work = group.create_task(ingest(rag, inputs, engine, "file", documents=1))
            await parser.after(3)
            await parser.die()
            await asyncio.sleep(0.3)
            parser.is_busy = False
            await parser.revive(forgets=forgets)
        assert work.result() == {"processed": 1}
        assert parser.uploads == {"file-0.pdf": 1 + forgets}


@pytest.mark.parametrize("fault", ["none", "refuses"])
async def test_a_file_that_its_parser_rejects_fails_at_once_and_is_no_failure_of_the_parser(
    fault: Fault, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = registry(RESILIENCE_RECOVERY="true")
    async with FakeParser("mineru") as parser, protected_on(guards) as rag:
        parser.configure(monkeypatch)
        parser.rejected.add("file-0.pdf")
        parser.fault = fault
        assert await ingest(rag, inputs, "mineru", "file", documents=1) == {"failed": 1}
        assert parser.uploads == {"file-0.pdf": 1}
        assert guards.get(NAME).breaker.snapshot().failed == 0
        [(_, row)], _ = await rag.doc_status.get_docs_paginated()
        assert row.metadata["resilience"]["cause"] == "fatal"


async def test_a_parser_that_forgets_every_file_gets_each_three_times(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeParser("docling") as parser, protected_on(registry()) as rag:
        parser.configure(monkeypatch)
        parser.is_forgetful = True
        assert await ingest(rag, inputs, "docling", "file", documents=1) == {"failed": 1}
        assert parser.uploads == {"file-0.pdf": 3}


async def test_documents_that_an_outage_of_their_parser_failed_are_recovered_after_it(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = {"RESILIENCE_INGEST_PATIENCE": "0.2", "RESILIENCE_RECOVERY": "true"}
    guards = registry(**patience, RESILIENCE_RECOVERY_DELAY="0.1")
    async with FakeParser("docling") as parser, protected_on(guards) as rag:
        parser.configure(monkeypatch)
        await parser.die()
        assert "processed" not in await ingest(rag, inputs, "docling", "file", documents=2)
        await parser.revive()
        async with asyncio.timeout(60):
            while await statuses(rag) != {"processed": 2}:  # noqa: ASYNC110 - no event says it
                await asyncio.sleep(0.05)


async def test_a_drain_leaves_a_document_that_waits_for_its_parser_to_the_next_start(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = registry(RESILIENCE_PARSER__BREAKER__CONSECUTIVE_FAILURES="1")
    async with FakeParser("mineru") as parser, protected_on(guards) as rag:
        parser.configure(monkeypatch)
        await parser.die()
        with pytest.raises(ShuttingDownError):
            await drained_in_mid_ingest(rag, guards, inputs)
        with allow_during_drain():
            assert await statuses(rag) == {"parsing": 1}


async def drained_in_mid_ingest(rag: Any, guards: Guards, inputs: Path) -> None:
    async with (
        asyncio.timeout(60),
        Coordinator(
            registry=guards, handle_signals=False, timeout=3.0, cancel_grace=1.0, close_timeout=1.0
        ) as coordinator,
    ):
        work = asyncio.create_task(ingest(rag, inputs, "mineru", "file", documents=1))
        await opened(guards)
        await coordinator.drain()
        await work


async def test_a_document_in_the_cache_needs_no_parser(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = registry()
    async with FakeParser("mineru") as parser, protected_on(guards) as rag:
        parser.configure(monkeypatch)
        assert await ingest(rag, inputs, "mineru", "file", documents=1) == {"processed": 1}
        rows, _ = await rag.doc_status.get_docs_paginated()
        await rag.adelete_by_doc_id(rows[0][0])
        await parser.die()
        guards.get(NAME).breaker.open()
        assert await ingest(rag, inputs, "mineru", "file", documents=1) == {"processed": 1}


async def test_unprotect_restores_what_clients_of_parsers_use(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeParser("mineru") as parser, protected_on(registry()) as rag:
        parser.configure(monkeypatch)
        assert await ingest(rag, inputs, "mineru", "file", documents=1) == {"processed": 1}
        assert type(client.httpx) is GuardedHttpx
        await unprotect(rag)
        assert vars(client)["httpx"] is httpx
        assert compat.PARSE_WORKER not in vars(rag)


async def test_a_parser_that_is_configured_has_its_guard_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DOCLING_ENDPOINT", raising=False)
    monkeypatch.setenv("MINERU_LOCAL_ENDPOINT", "http://127.0.0.1:1")
    guards = registry()
    async with protected_on(guards):
        assert [it.name for it in guards if it.name.startswith("parser.")] == [NAME]


class PluginParser(BaseParser):  # type: ignore[misc]
    """A parser of a plugin, whose service fails as often as a test says."""

    engine_name = "plugin"
    failures: ClassVar[list[Exception]] = []
    asked: ClassVar[list[str]] = []

    async def parse(self, ctx: Any) -> ParseResult:
        self.asked.append(ctx.doc_id)
        if self.failures:
            raise self.failures.pop()
        text = "Ada founded Alderwick."
        row = {"content": text, "file_path": ctx.file_path, "parse_format": "raw"}
        await ctx.rag._persist_parsed_full_docs(ctx.doc_id, row)
        return ParseResult(ctx.doc_id, ctx.file_path, "raw", text, parse_engine="plugin")


@pytest.mark.parametrize(
    ("error", "status", "attempts"),
    [
        (httpx.ConnectError("refused"), "processed", 2),
        (RuntimeError("The file is encrypted"), "failed", 1),
    ],
)
async def test_a_parser_of_a_plugin_is_guarded_as_a_whole(
    error: Exception, status: str, attempts: int, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards, asked = registry(), list[str]()
    monkeypatch.setattr(PluginParser, "failures", [error])
    monkeypatch.setattr(PluginParser, "asked", asked)
    spec = ParserSpec("plugin", f"{__name__}:PluginParser", frozenset({"pdf"}))
    monkeypatch.setitem(parser_registry._REGISTRY, "plugin", spec)
    async with protected_on(guards) as rag:
        assert await ingest(rag, inputs, "plugin", "file", documents=1) == {status: 1}
        assert len(asked) == attempts
        assert guards.get("parser.plugin").breaker.snapshot().failed == attempts - 1
