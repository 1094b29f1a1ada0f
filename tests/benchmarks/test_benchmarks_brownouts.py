"""The model of brownouts: ours answers what LightRAG alone answers, and the page says so."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest
from benchmarks.brownout_model import page
from benchmarks.brownout_model.policies import ALONE, OURS, POLICIES, ours
from benchmarks.brownout_model.world import Cell, Fault, Policy, simulate

pytestmark = pytest.mark.once
Row = dict[str, Any]


def played(policy: Policy, share: float, *, workers: int = 1) -> Cell:
    return simulate(policy, Fault(share, 20), 2, workers=workers, queries=80)


def is_brownout(row: Row) -> bool:
    """At 95 % and more, for minutes, a dependency is down; the page lists these cells."""
    return row["share"] <= 0.8 or (row["share"] < 1 and row["seconds"] <= 20)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.8])
def test_ours_answers_as_many_queries_of_a_brownout_as_lightrag_alone(
    share: float, workers: int
) -> None:
    alone, protected = (played(POLICIES[name], share, workers=workers) for name in (ALONE, OURS))

    assert protected.answered >= alone.answered
    assert protected.calls / protected.answers <= 1.35 * alone.calls / alone.answers


def test_no_circuit_opens_while_six_in_ten_fail_and_retries_alone_answer_nearly_all() -> None:
    impatient = played(ours(patience=0.0), 0.6)

    assert impatient.trips == 0
    assert impatient.answered > 0.95


def test_patience_answers_queries_of_a_short_outage_that_are_lost_without() -> None:
    assert played(ours(patience=0.0), 1.0).answered < 0.1
    assert played(ours(), 1.0).answered >= played(POLICIES[ALONE], 1.0).answered


def test_the_former_rule_loses_queries_of_a_brownout() -> None:
    assert played(POLICIES["five in a row"], 0.6).answered < 0.7


def test_a_cell_is_the_same_each_time_it_is_played() -> None:
    assert played(ours(), 0.8, workers=2).figures == played(ours(), 0.8, workers=2).figures


def test_the_page_and_its_picture_are_made_of_the_figures_that_are_kept() -> None:
    for name, text in page.files(page.kept()).items():
        written = (page.DOCS / name).read_text("utf-8")
        assert written == text, f"{name}: make bench-brownouts ARGS=--page"


def test_the_picture_names_every_policy() -> None:
    picture = page.files(page.kept())["brownouts.svg"]
    labels = {text.text for text in ET.fromstring(picture).iter() if text.tag.endswith("text")}  # noqa: S314 - our own
    assert labels >= {*POLICIES}


def test_in_every_kept_cell_of_a_brownout_ours_answers_as_many_as_lightrag_alone() -> None:
    cells = [pair for pair in page.pairs(page.kept()) if is_brownout(pair[0])]

    assert len(cells) > 70
    assert [pair for pair in cells if pair[1]["answered"] < pair[0]["answered"]] == []
