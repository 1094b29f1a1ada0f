"""The list of files that start first."""

from __future__ import annotations

from support.slow_files import seconds_by_file


def test_each_slow_file_exists() -> None:
    assert [file for file in seconds_by_file() if not file.exists()] == []
