"""The journal of what was given up."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.draining import journal as module
from lightrag_resilience.draining.journal import AbandonedWork, Journal

WRITER = """
import sys
from lightrag_resilience.draining.journal import AbandonedWork, Journal
for number in range(200):
    name = f"{sys.argv[2]}-{number}"
    Journal(sys.argv[1]).write([AbandonedWork(name, "task", "in_flight", 1.0, "x")])
"""


def record(name: str = "llm.openai") -> AbandonedWork:
    return AbandonedWork(name, "call", "in_flight", 1.5, "SIGTERM")


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = Journal(tmp_path / "folder" / "journal")
    assert list(made.read()) == []
    records = [record("a"), record("b")]
    made.write(records)
    made.write([])
    made.write([record("c")])
    assert list(made.read())[:2] == records
    assert [each.name for each in made.read()] == ["a", "b", "c"]
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("torn", "left"), [(1, "abc"), (2, "ac"), (100, "ac")])
def test_a_torn_last_line_loses_no_other_record(tmp_path: Path, torn: int, left: str) -> None:
    made = Journal(tmp_path / "journal")
    made.write([record("a"), record("b")])
    made.path.write_bytes(made.path.read_bytes()[:-torn])
    made.write([record("c")])
    assert [each.name for each in made.read()] == list(left)


@given(st.lists(st.binary(max_size=60) | st.dictionaries(st.text(), st.integers()), max_size=8))
def test_lines_that_are_no_records_are_skipped_and_reported(lines: list[Any]) -> None:
    for line in lines:
        text = line if isinstance(line, bytes) else json.dumps(line).encode()
        assert module._parsed(text) is None


@pytest.mark.parametrize(
    "change",
    [
        {"pid": "1"},
        {"pid": 0},
        {"pid": True},
        {"pid": 10**400},
        {"seconds": True},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"at": 1e12},
        {"started": "1"},
        {"started_at": None},
        {"kind": "Who is Ada?"},
        {"kind": ""},
        {"kind": "x" * 31},
        {"state": "lost"},
        {"effect": ""},
        {"attempt": 1.0},
        {"document": None},
        {"version": 1},
        {"version": 3},
        {"version": True},
        {"version": "2"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_malformed_record_is_skipped(tmp_path: Path, change: dict[str, Any]) -> None:
    made = Journal(tmp_path / "journal")
    made.write([record()])
    good = json.loads(made.path.read_text().strip())
    assert module._parsed(json.dumps(good).encode()) is not None
    assert module._parsed(json.dumps(good | change).encode()) is None


def test_a_line_that_is_nested_too_deep_loses_no_other_record(tmp_path: Path) -> None:
    made = Journal(tmp_path / "journal")
    made.write([record("a")])
    with made.path.open("ab") as file:
        file.write(b"[" * 60_000)
    made.write([record("b")])
    assert [each.name for each in made.read()] == ["a", "b"]


def test_a_partial_write_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
    with pytest.raises(OSError, match="Only a part of a record"):
        Journal(tmp_path / "journal").write([record()])


OF_FIRST_VERSION: dict[str, Any] = {
    "version": 1,
    "name": "llm",
    "kind": "call",
    "state": "in_flight",
    "seconds": 2,
    "signal": "SIGTERM",
    "at": 100.0,
    "id": "x",
    "pid": 7,
    "host": "h",
}


def test_records_of_version_1_are_read(tmp_path: Path) -> None:
    made = Journal(tmp_path / "journal")
    made.path.write_text(json.dumps(OF_FIRST_VERSION) + "\n")
    made.write([record()])
    first, second = made.read()
    assert (first.name, first.pid, first.started_at) == ("llm", 7, 98.0)
    assert (first.boot, first.started, first.effect) == ("", None, "unknown")
    assert second.name == "llm.openai"


@pytest.mark.parametrize("missing", [*OF_FIRST_VERSION])
def test_a_record_of_version_1_with_a_missing_field_is_skipped(missing: str) -> None:
    odd = {name: value for name, value in OF_FIRST_VERSION.items() if name != missing}
    assert module._parsed(json.dumps(odd).encode()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"boot": "b"},
        {"started": 1.0},
        {"started_at": 98.0},
        {"effect": "pure"},
        {"attempt": 1},
        {"more": ""},
        {"version": 0},
        {"version": 2},
        {"version": True},
        {"version": 1.0},
        {"name": None},
        {"host": 7},
        {"id": ["x"]},
        {"signal": {}},
        {"kind": "two words"},
        {"state": "lost"},
        {"seconds": "2"},
        {"seconds": None},
        {"seconds": float("inf")},
        {"at": False},
        {"at": -1e12},
        {"pid": 7.0},
        {"pid": 2**31},
        {"pid": -7},
    ],
    ids=str,
)
def test_a_malformed_record_of_version_1_is_skipped(change: dict[str, Any]) -> None:
    assert module._parsed(json.dumps(OF_FIRST_VERSION).encode()) is not None
    assert module._parsed(json.dumps(OF_FIRST_VERSION | change).encode()) is None


def test_a_record_is_never_too_long_to_be_read(tmp_path: Path) -> None:
    made = Journal(tmp_path / "journal")
    made.write([record("\N{SNOWMAN}" * 100_000)])
    (found,) = made.read()
    assert found.name == "\N{SNOWMAN}" * 500


def test_a_record_names_the_machine_and_its_boot(tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id")
    assert record().boot == (boot.read_text().strip() if boot.exists() else "")


def test_a_large_journal_is_rotated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    made = Journal(tmp_path / "journal")
    for number in range(100):
        made.write([record(str(number))])
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) < 3000
    assert [each.name for each in made.read()][-1] == "99"


def put_aside(made: Journal) -> None:
    made.path.replace(made._rotated)


def put_aside_and_begun(made: Journal) -> None:
    put_aside(made)
    made.write([record("other")])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock for it")
@pytest.mark.parametrize("other", [put_aside, put_aside_and_begun])
def test_a_journal_that_another_process_rotates_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Callable[[Journal], None]
) -> None:
    made, real = Journal(tmp_path / "journal"), Path.stat
    made.write([record("old"), record("old")])
    monkeypatch.setattr(module, "_MAX_BYTES", made.path.stat().st_size - 1)

    def slow(path: Path, **options: Any) -> os.stat_result:
        found = real(path, **options)
        if path == made.path:
            monkeypatch.setattr(Path, "stat", real)
            other(made)
        return found

    monkeypatch.setattr(Path, "stat", slow)
    made.write([record("new")])
    names = [each.name for each in made.read()]
    assert names == ["old", "old", *["other"] * (other is put_aside_and_begun), "new"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock for it")
def test_a_journal_that_another_process_has_locked_is_appended_to_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1)
    made = Journal(tmp_path / "journal")
    made.write([record("a")])
    with module._locked(made.path):
        made.write([record("b")])
    assert not made._rotated.exists()
    made.write([record("c")])
    assert made._rotated.exists()
    assert [each.name for each in made.read()] == ["a", "b", "c"]


def test_several_processes_append_without_mixing_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name])  # noqa: S603 - our own
        for name in ("a", "b", "c")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    names = {each.name for each in Journal(path).read()}
    assert names == {f"{name}-{number}" for name in "abc" for number in range(200)}
