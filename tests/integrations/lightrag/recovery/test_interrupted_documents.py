"""What a start logs about documents in the journal."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag.base import DocStatus

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import AbandonedWork, Journal
from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.integrations.lightrag.recovery.interrupted_documents import (
    in_words,
    left_documents,
)
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]


def record(document: str, workspace: str = "w", **more: Any) -> AbandonedWork:
    about: Any = {"workspace": workspace, "document": document}
    return AbandonedWork(
        "lightrag.ingest", "document", "in_flight", 1.0, "SIGTERM", **about, **more
    )


def test_the_last_record_of_each_document_of_a_workspace_counts() -> None:
    run = AbandonedWork("lightrag.ingest", "task", "outcome_unknown", 1.0, "SIGTERM", workspace="w")
    records = [record("a", at=1.0), run, record("b"), record("c", "other"), record("a", at=2.0)]
    left = left_documents(records, "w")
    assert list(left) == ["b", "a"]
    assert left["a"].at == 2.0


def test_the_documents_read_from_a_journal_are_bounded() -> None:
    left = left_documents((record(str(number)) for number in range(5010)), "w")
    assert (len(left), next(iter(left))) == (5000, "10")


class Row:
    status = DocStatus.PROCESSING


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ""),
        ([{"status": "processed"}, None], ""),
        (
            [Row(), {"status": DocStatus.PENDING}, {"status": "PROCESSED"}, {"status": "failed"}],
            "2 are resumed, 1 are done, 1 failed, 0 are gone",
        ),
        ([None, {"status": "failed"}], "0 are resumed, 0 are done, 1 failed, 1 are gone"),
    ],
)
def test_the_summary_of_interrupted_documents_is_empty_when_none_is_left(
    rows: list[Any], words: str
) -> None:
    assert in_words(rows) == words


async def started(rag: Any, journal: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Protect a LightRAG, and wait for a text in the log."""
    caplog.set_level(logging.INFO, "lightrag_resilience")
    variables = {"RESILIENCE_SHUTDOWN_JOURNAL": str(journal), "RESILIENCE_RECOVERY_DELAY": "0.05"}
    await protect(rag, registry=Guards(settings=load_settings(variables)))
    async with asyncio.timeout(60):
        while text not in caplog.text:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.02)
    await unprotect(rag)


async def test_a_start_logs_which_documents_are_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.apipeline_enqueue_documents(["Ada founded Alderwick.", "Ada has a boat."])
        rows, _ = await rag.doc_status.get_docs_paginated(page=1, page_size=10)
        names = [document for document, _ in rows]
        journal = Journal(tmp_path / "journal")
        journal.write([record(name, rag.workspace) for name in [*names, "gone"]])
        said = (
            "Resuming 2 documents left by the previous run. "
            "Of 3 documents in the journal, 2 are resumed, 0 are done"
        )
        await started(rag, journal.path, caplog, said)


async def test_an_unreadable_journal_does_not_stop_the_resumption(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.apipeline_enqueue_documents("Ada founded Alderwick.")
        await started(rag, tmp_path, caplog, "could not be read: OSError")
