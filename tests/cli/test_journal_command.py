"""`lightrag-resilience journal`: what processes gave up when they ended."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from lightrag_resilience.cli.app import app
from lightrag_resilience.draining.journal import AbandonedWork, Journal


def run(*words: str, **variables: str) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["journal", *words], env={"COLUMNS": "180", **variables})
    return ran.exit_code, ran.output


def record(name: str = "llm") -> AbandonedWork:
    return AbandonedWork(name, "call", "in_flight", 1.0, "SIGTERM")


def test_journal_lists_abandoned_work(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    record = AbandonedWork("[red]an ingest[/]", "task", "outcome_unknown", 12.34, "SIGTERM", at=0.0)
    Journal(path).write([record])
    code, text = run(str(path))
    assert code == 1
    for cell in ("1970-01-01 00:00:00 UTC", "[red]an ingest[/]", "12.3 s", "SIGTERM"):
        assert cell in text
    code, text = run("--json", RESILIENCE_SHUTDOWN_JOURNAL=str(path))
    assert code == 1
    assert [each["id"] for each in json.loads(text)] == [record.id]


def test_journal_shows_documents_attempts_and_effects(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    about: Any = {"workspace": "books", "document": "doc-1", "track": "insert_7"}
    document = AbandonedWork("lightrag.ingest", "document", "in_flight", 1.0, "SIGTERM", **about)
    call = AbandonedWork("llm", "call", "queued", 1.0, "SIGTERM", attempt=3, effect="pure")
    Journal(path).write([document, call])
    _, text = run(str(path), COLUMNS="240")
    assert "books doc-1 insert_7" in text
    assert "call, pure" in text
    assert "queued, attempt 3" in text


def test_an_empty_journal_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert run(str(tmp_path / "empty")) == (0, "No work was abandoned.\n")
    # The journal of the settings is made when there is something to write down.
    variables = {"RESILIENCE_SHUTDOWN_JOURNAL": str(tmp_path / "none")}
    assert run(**variables) == (0, "No work was abandoned.\n")


def test_a_wrong_path_is_an_error(tmp_path: Path) -> None:
    code, text = run(str(tmp_path / "none"))
    assert (code, text.split(str(tmp_path))[0]) == (2, "There is no journal ")


def test_a_journal_with_only_its_rotated_half_is_read(tmp_path: Path) -> None:
    made = Journal(tmp_path / "journal")
    made.write([record()])
    made.path.rename(tmp_path / "journal.1")
    assert run(str(made.path))[0] == 1


@pytest.mark.parametrize("content", [b"no journal\n", b'{"version": 9}\n', b"\0" * 200_000, b"{"])
def test_a_file_that_is_no_journal_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    code, text = run(str(path))
    assert (code, "No work was abandoned" in text) == (2, False)
    assert text == f"1 record cannot be read: line 1 of {path}\n"


def test_damaged_lines_are_named_beside_readable_records(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).write([record("an ingest")])
    with path.open("ab") as file:
        file.write(b'{"version": 2, "na')  # a worker was killed while it wrote
    Journal(path).write([record("another")])
    code, text = run(str(path))
    assert code == 2
    assert "an ingest" in text
    assert "another" in text
    assert f"1 record cannot be read: line 3 of {path}" in text


def test_unprintable_characters_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).write([record("a\ud800b\x1b[31mc\nd")])
    code, text = run(str(path))
    assert (code, "ab[31mcd" in text) == (1, True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such paths")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_journal_path_that_is_no_file_does_not_block(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    code, text = run(str(path))
    assert (code, text) == (2, f"The journal {path} cannot be read: It is no regular file\n")
    with pytest.raises(OSError, match=r"no regular file|No such device"):
        Journal(path).write([record()])


def test_no_configured_journal_says_what_to_do() -> None:
    code, text = run()
    assert code == 2
    assert "set RESILIENCE_SHUTDOWN_JOURNAL" in text


def test_an_unreadable_journal_is_one_line(tmp_path: Path) -> None:
    code, text = run(str(tmp_path))
    assert code == 2
    assert "cannot be read" in text
