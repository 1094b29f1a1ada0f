"""How the tests run: which files start first, and what is measured."""

from __future__ import annotations

import sys

import pytest

from support.slow_files import seconds_by_file


def test_each_slow_file_exists() -> None:
    assert [file for file in seconds_by_file() if not file.exists()] == []


@pytest.mark.no_cover
def test_a_test_without_coverage_is_not_traced() -> None:
    assert not type(sys.gettrace()).__module__.startswith("coverage")
