"""Tokens: guessed before a call, read from its answer afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.limits.token_usage import estimate_tokens, text_tokens, used_tokens


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2)])
def test_four_characters_are_a_token(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, (0, None)),
        (("a" * 40,), {"system_prompt": "b" * 8}, (12, None)),
        ((), {"messages": [{"role": "user", "content": "a" * 40}]}, (11, None)),
        ((["a" * 4, "b" * 4],), {}, (2, None)),
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
    circle: list[Any] = ["abcd"]
    circle.append(circle)
    assert estimate_tokens((circle,), {})[0] == 4
    assert estimate_tokens((["abcd"] * 5000,), {})[0] == 1000


@pytest.mark.parametrize(
    "usage",
    [
        {"total_tokens": 30},
        {"prompt_tokens": 10, "completion_tokens": 20},
        {"input_tokens": 10, "output_tokens": 20},
        {"prompt_eval_count": 10, "eval_count": 20},
        {"total_token_count": 30},
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
    ],
)
def test_an_answer_without_usage_has_no_used_tokens(answer: Any) -> None:
    assert used_tokens(answer) is None


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_token_functions_never_raise(value: Any) -> None:
    assert estimate_tokens((value,), {"prompt": value})[0] >= 0
    assert used_tokens({"usage": value}) is None


def test_texts_are_read_to_a_bounded_depth() -> None:
    asked: Any = "a" * 40
    for depth in range(8):
        within = 10 if depth <= 4 else 0
        assert estimate_tokens((asked,), {}) == (within, None)
        assert estimate_tokens(({"content": asked},), {})[0] == (10 if depth < 4 else 0)
        asked = [asked] if depth % 2 else {"content": asked}
