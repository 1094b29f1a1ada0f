"""Tokens: guessed before a call, read from its answer afterwards."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.limits.token_usage import (
    estimate_tokens,
    text_tokens,
    token_weight,
    used_tokens,
    with_tokenizer,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("the small letters ", 4),
        ("{1,2}", 4),
        ("居里夫人", 4),
        ("パリで", 3),
        ("폴로늄", 3),
        ("полоний", 4),
        ("🙂", 2),
        ("\ud800", 1),
    ],
)
def test_a_text_is_estimated_by_its_scripts(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens


def test_a_long_text_is_estimated_by_a_sample() -> None:
    text = "the small letters 居里夫人 " * 20_000
    assert text_tokens(text) == pytest.approx(token_weight(text), rel=0.02)
    text = "x" * 200 + "居" * 100 + "x" * 1_000_000  # the first slice is shorter, the next later
    assert text_tokens(text) < token_weight(text) - 50


class Tokenizer:
    """A token for each character; it notes how many it was given."""

    def __init__(self) -> None:
        self.longest = 0
        self.calls = 0

    def encode(self, text: str) -> list[int]:
        self.calls += 1
        self.longest = max(self.longest, len(text))
        return [0] * len(text)


def test_a_tokenizer_encodes_no_more_than_a_sample() -> None:
    tokenizer = Tokenizer()
    count = with_tokenizer(tokenizer.encode)
    assert [count("x" * size) for size in (10, 1_000_000)] == [10, 1_000_000]
    assert tokenizer.longest < 5_000


def test_a_slow_tokenizer_is_replaced_by_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, clock = Tokenizer(), itertools.count(step=0.006)
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    count = with_tokenizer(tokenizer.encode)
    assert [count("x" * 100) for _ in range(4)] == [100, 100, 100, 22]


def test_a_tokenizer_that_fails_is_replaced_by_the_estimate() -> None:
    def encode(text: str) -> list[int]:
        calls.append(len(text))
        raise OSError("no table")

    calls: list[int] = []
    count = with_tokenizer(encode)
    assert [count("x" * 100) for _ in range(3)] == [22, 22, 22]
    assert calls == [100]


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, (0, None)),
        (("居" * 40,), {"system_prompt": "居" * 7}, (48, None)),
        ((), {"messages": [{"role": "user", "content": "居" * 40}]}, (42, None)),
        ((["居" * 4, "居" * 4],), {}, (9, None)),
        ((), {"max_tokens": 7}, (0, 7)),
        ((), {"max_tokens": 7, "max_completion_tokens": 9}, (0, 9)),
        ((), {"max_tokens": None, "max_output_tokens": 3}, (0, 3)),
        ((), {"max_tokens": True}, (0, None)),
        ((), {"max_tokens": -1}, (0, None)),
        ((), {"max_tokens": "7"}, (1, None)),
        ((5, object(), b"bytes"), {}, (0, None)),
    ],
)
def test_a_call_is_estimated_by_the_texts_of_its_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: tuple[int, int | None]
) -> None:
    assert estimate_tokens(args, kwargs) == expected


def test_an_estimate_reads_a_bounded_number_of_texts() -> None:
    circle: list[Any] = ["居"]
    circle.append(circle)
    assert estimate_tokens((circle,), {})[0] == 5
    assert estimate_tokens((["居"] * 5000,), {})[0] == 1220


@pytest.mark.parametrize(
    "usage",
    [
        {"total_tokens": 30},
        {"prompt_tokens": 10, "completion_tokens": 20},
        {"input_tokens": 10, "output_tokens": 20},
        {"prompt_eval_count": 10, "eval_count": 20},
        {"total_token_count": 30},
        {"total_tokens": 0, "prompt_tokens": 10, "completion_tokens": 20},
    ],
)
@pytest.mark.parametrize("name", ["usage", "usage_metadata", None])
def test_used_tokens_are_read_from_an_answer(usage: dict[str, int], name: str | None) -> None:
    answer: dict[str, Any] = {**usage} if name is None else {name: usage}
    assert used_tokens(answer) == 30
    parts = {key: SimpleNamespace(**value) for key, value in answer.items()} if name else answer
    assert used_tokens(SimpleNamespace(**parts)) == 30


class Odd:
    @property
    def usage(self) -> Any:
        raise RuntimeError("odd")


@pytest.mark.parametrize(
    "answer",
    [
        *(None, "text", b"bytes", 5, [], {}, Odd()),
        *({"usage": None}, {"usage": {"total_tokens": -1}}, {"usage": {"total_tokens": "30"}}),
        {"usage": {"prompt_tokens": 10}},
        {"usage": {"total_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0}},
        {"usage": {"total_tokens": 10**30}},
    ],
)
def test_an_answer_without_usage_has_no_used_tokens(answer: Any) -> None:
    assert used_tokens(answer) is None


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_token_functions_never_raise(value: Any) -> None:
    assert estimate_tokens((value,), {"prompt": value})[0] >= 0
    assert used_tokens({"usage": value}) is None


def test_texts_are_read_to_a_bounded_depth() -> None:
    asked: Any = "居" * 40
    for depth in range(8):
        within = 40 if depth <= 4 else 0
        assert estimate_tokens((asked,), {}) == (within, None)
        assert estimate_tokens(({"content": asked},), {})[0] == (40 if depth < 4 else 0)
        asked = [asked] if depth % 2 else {"content": asked}
