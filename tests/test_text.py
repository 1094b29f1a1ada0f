"""Durations as people write and read them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.text import as_duration, as_words, counted


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), (" 10m ", 600), ("2 h", 7200), ("7d", 604_800)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert as_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5", "8d", "10x", "m", "1h30m", "1e3", "inf", "٣"]
)
def test_an_invalid_duration_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration such as 90s, 10m or 2h"):
        as_duration(text)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 < as_duration(text) <= 7 * 86400


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 m"),
        (61, "1 m 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 m"),
        (86_400 + 59, "1 d"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_duration_is_written_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert as_words(seconds) == words


def test_counted_uses_the_singular_for_one() -> None:
    assert [counted(number, "worker") for number in (0, 1, 2)] == [
        "0 workers",
        "1 worker",
        "2 workers",
    ]
