"""What a query can still be answered from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lightrag")

from lightrag import QueryParam

from lightrag_resilience.integrations.lightrag.degradation.levels import Part, Rung, rung_for

MODES = ["local", "global", "hybrid", "naive", "mix", "bypass"]


@pytest.mark.parametrize(
    ("mode", "missing", "rung"),
    [
        ("mix", {Part.GRAPH}, Rung("naive")),
        ("mix", {Part.TEXTS}, Rung("naive", uncached=True)),
        ("mix", {Part.VECTORS}, Rung("local", by_labels=True)),
        ("naive", {Part.VECTORS}, Rung("local", by_labels=True)),
        ("hybrid", {Part.MODEL}, Rung("hybrid", context_only=True)),
        ("global", {Part.MODEL, Part.GRAPH}, Rung("naive", context_only=True)),
        ("mix", {Part.MODEL, Part.VECTORS}, Rung("local", by_labels=True, context_only=True)),
        ("mix", {Part.GRAPH, Part.VECTORS}, None),
        ("bypass", {Part.MODEL}, None),
    ],
)
def test_the_fullest_answer_without_what_is_missing(
    mode: str, missing: set[Part], rung: Rung | None
) -> None:
    assert rung_for(mode, missing) == rung


@given(st.sampled_from(MODES), st.sets(st.sampled_from(Part)))
def test_no_rung_needs_what_is_missing(mode: str, missing: set[Part]) -> None:
    rung = rung_for(mode, missing)
    if rung is None:
        return
    uses_graph = rung.mode != "naive"
    assert not (uses_graph and missing & {Part.GRAPH, Part.TEXTS})
    assert not (Part.VECTORS in missing and not rung.by_labels)
    assert rung.context_only == (Part.MODEL in missing)


def test_a_question_stands_for_the_keywords_that_no_model_can_find() -> None:
    asked = QueryParam(mode="mix", stream=True)
    changed = Rung("mix", context_only=True).change("Who founded it?", asked)
    assert (changed.hl_keywords, changed.ll_keywords) == (["Who founded it?"], ["Who founded it?"])
    assert (changed.only_need_context, changed.stream) == (True, False)
    assert (asked.ll_keywords, asked.stream) == ([], True)


def test_keywords_that_were_given_are_kept() -> None:
    asked = QueryParam(mode="mix", ll_keywords=["Ada"])
    assert Rung("mix", context_only=True).change("Who?", asked).ll_keywords == ["Ada"]
