"""Bounds: which values a hint lets in, and how it says what it wants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.config.validation import (
    TextFormat,
    describe,
    field_hints,
    problem_with,
    setting,
    settings_of,
)

SHARE = Annotated[float, Gt(0), Le(1)]
WAIT = Annotated[float, Ge(0), Le(86_400)]
COUNT = Annotated[int, Ge(1), Le(20)]
COLOUR = Literal["red", "blue"]
NUMBERS = st.integers() | st.floats(allow_nan=True, allow_infinity=True)


@dataclass
class Paint:
    shade: SHARE = 0.5
    colour: COLOUR = "red"


@given(NUMBERS)
def test_a_number_fits_exactly_when_it_is_inside_the_bounds(value: float) -> None:
    assert (problem_with(value, SHARE) is None) == (0 < value <= 1)
    assert (problem_with(value, WAIT) is None) == (0 <= value <= 86_400)


@given(NUMBERS)
def test_a_whole_number_must_be_an_int_inside_the_bounds(value: float) -> None:
    assert (problem_with(value, COUNT) is None) == (isinstance(value, int) and 1 <= value <= 20)


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (SHARE, (math.ulp(0.0), 1, 1.0), (0, 0.0, math.nextafter(1.0, 2.0))),
        (WAIT, (0, -0.0, 86_400), (-math.ulp(0.0), math.nextafter(86_400.0, math.inf))),
        (COUNT, (1, 20), (0, 21, 10**400, -(10**400))),
    ],
)
def test_the_edges_of_the_bounds_are_exact(
    hint: Any, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert [value for value in inside if problem_with(value, hint)] == []
    assert [value for value in outside if not problem_with(value, hint)] == []


@pytest.mark.parametrize(
    "value",
    [True, False, math.nan, math.inf, -math.inf, "1", b"1", None, [], Decimal(1), Fraction(1)],
    ids=repr,
)
@pytest.mark.parametrize("hint", [SHARE, WAIT, COUNT])
def test_what_is_no_finite_number_fits_no_number(value: object, hint: Any) -> None:
    assert problem_with(value, hint) == f"must be {describe(hint)}, not {value!r}"


@pytest.mark.parametrize("value", [0, 1, "true", None, 1.0])
def test_only_true_and_false_are_booleans(value: object) -> None:
    assert problem_with(True, bool) is None
    assert problem_with(False, bool) is None
    assert problem_with(value, bool) == f"must be true or false, not {value!r}"


@given(st.text(max_size=5) | st.none() | st.integers() | st.lists(st.text()))
def test_a_choice_takes_its_words_and_nothing_else(value: object) -> None:
    assert (problem_with(value, COLOUR) is None) == (value in ("red", "blue"))


@pytest.mark.parametrize("word", ["red", "blue"])
def test_each_word_of_a_choice_is_taken(word: str) -> None:
    assert problem_with(word, COLOUR) is None


def test_a_word_that_is_no_choice_is_answered_with_those_that_are() -> None:
    assert problem_with("Red", COLOUR) == "must be one of red, blue, not 'Red'"


@given(NUMBERS)
def test_an_optional_number_has_the_same_bounds(value: float) -> None:
    assert (problem_with(value, SHARE | None) is None) == (problem_with(value, SHARE) is None)


def test_an_optional_number_may_be_none() -> None:
    assert problem_with(None, SHARE | None) is None
    assert problem_with(None, COUNT | None) is None
    assert problem_with(0, COUNT | None) == (
        "must be a whole number at least 1 and at most 20, or none, not 0"
    )


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (SHARE, "a number above 0 and at most 1"),
        (WAIT, "a number at least 0 and at most 86400"),
        (COUNT, "a whole number at least 1 and at most 20"),
        (SHARE | None, "a number above 0 and at most 1, or none"),
        (Annotated[int, Ge(0)], "a whole number at least 0"),
        (COLOUR, "one of red, blue"),
        (bool, "true or false"),
    ],
)
def test_a_hint_is_described_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_the_hints_of_a_dataclass_keep_their_bounds_and_their_order() -> None:
    assert list(field_hints(Paint).items()) == [("shade", SHARE), ("colour", COLOUR)]


@pytest.mark.parametrize("hint", [int, float, str, int | None])
def test_a_type_without_bounds_is_refused_as_a_setting(hint: Any) -> None:
    with pytest.raises(TypeError, match="sets no bounds: write Annotated"):
        describe(hint)


def test_a_text_is_described_by_its_format() -> None:
    hint = Annotated[str, TextFormat("the path of a file")]
    assert describe(hint | None) == "the path of a file, or none"


def test_a_setting_is_its_name_type_default_and_sentence() -> None:
    @dataclass
    class Declared:
        shade: SHARE = setting(0.5, "How dark it is.")

    (shade,) = settings_of(Declared).values()
    assert (shade.name, shade.default, shade.sentence) == ("shade", 0.5, "How dark it is.")
    assert shade.allowed == "a number above 0 and at most 1"


def test_a_setting_without_a_sentence_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Paint\.shade has no sentence: declare it by setting"):
        settings_of(Paint)
