"""`lightrag-resilience journal`: what processes gave up when they ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from lightrag_resilience.cli import app
from lightrag_resilience.journal import Abandoned, Journal


def run(*words: str, **variables: str) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["journal", *words], env={"COLUMNS": "180", **variables})
    return ran.exit_code, ran.output


def test_it_lists_what_was_given_up(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    record = Abandoned("[red]an ingest[/]", "task", "outcome_unknown", 12.34, "SIGTERM", at=0.0)
    Journal(path).write([record])
    code, text = run(str(path))
    assert code == 1
    for cell in ("1970-01-01 00:00:00 UTC", "[red]an ingest[/]", "12.3 s", "SIGTERM"):
        assert cell in text
    code, text = run("--json", RESILIENCE_SHUTDOWN_JOURNAL=str(path))
    assert code == 1
    assert [each["id"] for each in json.loads(text)] == [record.id]


def test_it_tells_of_documents_attempts_and_what_is_left_of_a_call(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    about: Any = {"workspace": "books", "document": "doc-1", "track": "insert_7"}
    document = Abandoned("lightrag.ingest", "document", "in_flight", 1.0, "SIGTERM", **about)
    call = Abandoned("llm", "call", "queued", 1.0, "SIGTERM", attempt=3, effect="pure")
    Journal(path).write([document, call])
    _, text = run(str(path), COLUMNS="240")
    assert "books doc-1 insert_7" in text
    assert "call, pure" in text
    assert "queued, attempt 3" in text


def test_nothing_given_up_is_said(tmp_path: Path) -> None:
    assert run(str(tmp_path / "none")) == (0, "Nothing was given up.\n")


def test_without_a_journal_it_says_what_to_do() -> None:
    code, text = run()
    assert code == 2
    assert "set RESILIENCE_SHUTDOWN_JOURNAL" in text


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    code, text = run(str(tmp_path))
    assert code == 2
    assert "cannot be read" in text
