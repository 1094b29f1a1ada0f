"""What a query can still be answered from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lightrag")

from lightrag import QueryParam

from lightrag_resilience.integrations.lightrag.degradation.levels import (
    DegradationLevel,
    QueryComponent,
    level_for,
)

MODES = ["local", "global", "hybrid", "naive", "mix", "bypass"]


@pytest.mark.parametrize(
    ("mode", "missing", "rung"),
    [
        ("mix", {QueryComponent.GRAPH}, DegradationLevel("naive")),
        ("mix", {QueryComponent.TEXTS}, DegradationLevel("naive", uncached=True)),
        ("mix", {QueryComponent.VECTORS}, DegradationLevel("local", by_labels=True)),
        ("naive", {QueryComponent.VECTORS}, DegradationLevel("local", by_labels=True)),
        ("hybrid", {QueryComponent.MODEL}, DegradationLevel("hybrid", context_only=True)),
        (
            "global",
            {QueryComponent.MODEL, QueryComponent.GRAPH},
            DegradationLevel("naive", context_only=True),
        ),
        (
            "mix",
            {QueryComponent.MODEL, QueryComponent.VECTORS},
            DegradationLevel("local", by_labels=True, context_only=True),
        ),
        ("mix", {QueryComponent.GRAPH, QueryComponent.VECTORS}, None),
        ("bypass", {QueryComponent.MODEL}, None),
    ],
)
def test_the_level_is_the_fullest_without_the_missing_components(
    mode: str, missing: set[QueryComponent], rung: DegradationLevel | None
) -> None:
    assert level_for(mode, missing) == rung


@given(st.sampled_from(MODES), st.sets(st.sampled_from(QueryComponent)))
def test_no_level_needs_a_missing_component(mode: str, missing: set[QueryComponent]) -> None:
    rung = level_for(mode, missing)
    if rung is None:
        return
    uses_graph = rung.mode != "naive"
    assert not (uses_graph and missing & {QueryComponent.GRAPH, QueryComponent.TEXTS})
    assert not (QueryComponent.VECTORS in missing and not rung.by_labels)
    assert rung.context_only == (QueryComponent.MODEL in missing)


def test_the_question_replaces_keywords_that_need_a_model() -> None:
    param = QueryParam(mode="mix", stream=True)
    changed = DegradationLevel("mix", context_only=True).change("Who founded it?", param)
    assert (changed.hl_keywords, changed.ll_keywords) == (["Who founded it?"], ["Who founded it?"])
    assert (changed.only_need_context, changed.stream) == (True, False)
    assert (param.ll_keywords, param.stream) == ([], True)


def test_given_keywords_are_kept() -> None:
    param = QueryParam(mode="mix", ll_keywords=["Ada"])
    assert DegradationLevel("mix", context_only=True).change("Who?", param).ll_keywords == ["Ada"]
