"""The page of the benchmarks is what the tool makes of the figures beside it."""

from __future__ import annotations

import json
import math
import platform
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

pytest.importorskip("rich")

from benchmarks.figures import Figure, as_they_are, costs, rounded
from benchmarks.goals import goals
from benchmarks.svg import Bar, Line, bars, small_multiples

from benchmarks import page


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((page.DOCS / page.FIGURES).read_text("utf-8"))
    return figures


def test_the_page_and_its_pictures_are_made_of_the_figures_that_are_kept(
    kept: dict[str, Any],
) -> None:
    for name, text in page.files(kept).items():
        assert (page.DOCS / name).read_text("utf-8") == text, f"{name}: python -m benchmarks.page"


def test_the_page_names_neither_this_machine_nor_its_paths(kept: dict[str, Any]) -> None:
    whole = "".join(page.files(kept).values())

    assert platform.node() not in whole
    assert not re.search(r"/(root|home|tmp|usr|opt)/", whole)
    assert kept["machine"]["architecture"] in page.files(kept)["performance.md"]


def test_every_row_of_a_table_has_a_cell_for_every_heading(kept: dict[str, Any]) -> None:
    lines = page.files(kept)["performance.md"].splitlines()

    columns = 0
    for line in lines:
        if line.startswith("|"):
            columns = columns or line.count("|")
            assert line.count("|") == columns, line
        else:
            columns = 0


def test_pictures_are_well_formed_and_show_every_stack(kept: dict[str, Any]) -> None:
    picture = page.files(kept)["performance-happy.svg"]

    labels = {text.text for text in ET.fromstring(picture).iter() if text.tag.endswith("text")}  # noqa: S314 - our own
    assert {stack for stack in kept["cases"]["happy"] if stack != "bare"} <= labels


def test_figures_of_one_part_are_put_beside_the_others(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    page.write({**kept, "soak": {}}, tmp_path)
    soak = {"minutes": 3.0, "calls": 7, "traced": [1e6, 1e6], "rss": [2e6, 2e6]}

    page.add("soak", soak, tmp_path)

    assert "3 minutes" in (tmp_path / "performance.md").read_text("utf-8")
    assert json.loads((tmp_path / page.FIGURES).read_text("utf-8"))["cases"] == kept["cases"]


def test_a_new_run_keeps_the_figures_of_parts_that_it_left_out(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    page.write(
        {**kept, "soak": {"old": 1, "minutes": 1, "calls": 1, "traced": [1, 1], "rss": [1, 1]}},
        tmp_path,
    )

    page.renew({key: value for key, value in kept.items() if key != "soak"}, tmp_path)

    assert json.loads((tmp_path / page.FIGURES).read_text("utf-8"))["soak"]["old"] == 1


def test_bars_are_longer_by_the_same_step_for_every_power_of_ten() -> None:
    rows = [Bar(f"of {value:g}", value, "", is_ours=False) for value in (1.0, 10.0, 100.0)]

    widths = [float(width) for width in re.findall(r'<rect .*?width="([\d.]+)"', bars("x", rows))]

    assert math.isclose(widths[2] - widths[1], widths[1] - widths[0], abs_tol=2.1)


def test_a_curve_has_a_point_for_every_size() -> None:
    picture = small_multiples("x", [Line("of what", [1, 10, 100], [3.0, 2.0, 1.0])])

    assert picture.count("<circle") == 3


def _with_happy_path(
    kept: dict[str, Any], ours: float, peer: float, ratio: float
) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(kept))
    changed["cases"]["happy"]["ours"] |= {"low": ours, "ratio": 1.0}
    changed["cases"]["happy"]["pyresilience"] |= {"low": peer, "ratio": ratio}
    return changed


@pytest.mark.parametrize(
    ("ours", "peer", "ratio", "is_met", "goal"),
    [
        pytest.param(1.5, 17.1, 11.3, True, "≤ 1.5 µs", id="just met"),
        pytest.param(1.51, 17.1, 99.0, False, "≤ 1.5 µs", id="just missed"),
        pytest.param(1.51, 8.0, 99.0, False, "≤ 1.5 µs", id="missed on a quicker machine"),
        pytest.param(3.0, 17.2, 11.4, True, "÷ 11.4", id="met on a slower machine"),
        pytest.param(1.5, 17.2, 11.3, False, "÷ 11.4", id="missed on a slower machine"),
    ],
)
def test_a_goal_is_met_by_the_lower_quartile_or_on_a_slow_machine_by_the_ratio(  # noqa: PLR0913
    kept: dict[str, Any], ours: float, peer: float, ratio: float, goal: str, *, is_met: bool
) -> None:
    first = next(iter(goals(_with_happy_path(kept, ours, peer, ratio))))

    assert first.is_met is is_met
    assert first.goal.endswith(goal)
    assert "composed" in first.peers


def test_costs_are_what_is_above_the_bare_call_of_the_same_round() -> None:
    samples = {"bare": [1e-6, 2e-6, 3e-6], "ours": [3e-6, 4e-6, 9e-6]}

    figures = costs(samples)

    assert figures["bare"].median == pytest.approx(2.0)
    assert figures["ours"].median == pytest.approx(2.0)
    assert figures["ours"].least == pytest.approx(2.0)


def test_a_ratio_is_the_median_over_the_rounds() -> None:
    figures = as_they_are({"ours": [1.0, 2.0, 10.0], "peer": [2.0, 4.0, 10.0]})

    assert figures["peer"] == Figure(4.0, 2.0, 3.0, 7.0, 2.0)


def test_figures_that_are_kept_have_four_digits() -> None:
    assert rounded({"a": [1.23456, 123456], "b": "1.23456"}) == {
        "a": [1.235, 123456],
        "b": "1.23456",
    }


def test_a_run_of_some_parts_keeps_the_machine_of_the_calls(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    page.write(kept, tmp_path)
    curve = {**kept["growth"][0], "what": "another"}

    page.renew(
        {"machine": {"cpus": 1}, "scale": {"rounds": 1}, "growth": [curve], "cluster": {}}, tmp_path
    )

    written = json.loads((tmp_path / page.FIGURES).read_text("utf-8"))
    assert written["machine"] == kept["machine"]
    assert written["growth"] == [curve]
    assert written["cluster"] == kept["cluster"]
