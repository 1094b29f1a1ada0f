"""The demo, run as users run it, and what it makes of what it measured."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lightrag_resilience import CircuitOpenError, Guards
from lightrag_resilience.cli.app import app
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.demo.comparison import Row, Verdict
from lightrag_resilience.demo.corpus import document, facts
from lightrag_resilience.demo.experiments import EXPERIMENTS, FULL, QUICK, Progress
from lightrag_resilience.demo.figures import RULE
from lightrag_resilience.demo.live_view import live_table
from lightrag_resilience.demo.measurements import Asked, Measured, Queries, percentile
from lightrag_resilience.demo.outage_chart import Chart, draw
from lightrag_resilience.demo.report import Result, as_json, as_table

SVG = "{http://www.w3.org/2000/svg}"


def measured(**changes: Any) -> Measured:
    figures = Measured(
        documents={"processed": 18, "failed": 2},
        http_calls=3,
        calls=[(0.5, "200"), (1.5, "503"), (2.5, "200")],
        queries=[Asked(0.1, 0.2, "answered"), Asked(1.0, 0.1, "refused", 4.0)],
        answered=1,
        refused=1,
        query_p50=0.1,
        query_p95=2.0,
        took=3.0,
    )
    for name, value in changes.items():
        setattr(figures, name, value)
    return figures


def shown(renderable: Any) -> str:
    console = Console(file=StringIO(), width=140)
    console.print(renderable)
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue()


# ---------------------------------------------------------------------- the whole


@pytest.mark.lightrag
@pytest.mark.once
def test_the_demo_shows_what_protection_does(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "down"
    options = ["--quick", "--workers", "2", "--json", "--output", str(output)]
    ran = CliRunner().invoke(app, ["demo", *options])
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert report == json.loads((output / "demo.json").read_text())
    experiments = report["experiments"]
    flaky, ingest, brownout, outage, dead = (experiments[e.name]["protected"] for e in EXPERIMENTS)
    assert flaky["processed_documents"] == ingest["processed_documents"] == QUICK.documents
    assert flaky["failed_documents"] == ingest["failed_documents"] == 0
    assert brownout["empty"] == outage["empty"] == 0
    assert brownout["answered"] > 0
    assert outage["answered"] > 0
    assert outage["recovery"] > 0
    assert dead["refused"] == QUICK.burst
    assert dead["http_calls"] <= 10
    assert experiments["dead"]["alone"]["empty"] == QUICK.burst
    rows = {row["row"]: row for row in experiments["dead"]["rows"]}
    assert rows["queries silently empty or broken"] == {
        "row": "queries silently empty or broken",
        "alone": str(QUICK.burst),
        "protected": "0",
        "verdict": "better",
    }
    assert "a minute later one more ends after" not in rows  # the quick demo ends sooner
    assert report["workers"]["number"] == 2
    assert report["workers"]["shared"]["all_reject"] < report["workers"]["own"]["all_reject"]
    assert ET.parse(output / "demo.svg").getroot().tag == f"{SVG}svg"  # noqa: S314


@pytest.mark.lightrag
@pytest.mark.anyio
async def test_an_outage_that_is_no_longer_young_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESILIENCE_QUERY__MAX_OUTAGE", "0.5")
    dead = next(e for e in EXPERIMENTS if e.name == "dead")
    scale = replace(QUICK, burst=2, old=4.0)
    run = await dead.run(protected=True, seed=1, scale=scale, progress=Progress())
    assert run.refused == 2
    assert run.refusal is not None
    assert run.refusal < 6.0  # a query in a young outage waits for 12 s
    assert run.refusal_retry_after is not None


# ---------------------------------------------------------------------- what it measures


async def answer() -> str:
    return "Ada founded it."


async def nothing() -> None:
    return None


async def refusal() -> str:
    raise CircuitOpenError("llm", 4.0, "after 5 failures in a row")


async def crash() -> str:
    raise ValueError("no")


@pytest.mark.anyio
async def test_outcomes_of_queries_are_distinguished() -> None:
    queries = Queries(clock=iter(range(100)).__next__)
    queries.begin()
    for query in (answer, nothing, refusal, crash):
        await queries.ask(query, "Ada")
    assert [asked.outcome for asked in queries.asked] == ["answered", "empty", "refused", "failed"]
    assert [asked.retry_after for asked in queries.asked] == [None, None, 4.0, None]
    assert [asked.at for asked in queries.asked] == [1, 3, 5, 7]
    assert {asked.took for asked in queries.asked} == {1}
    figures = Measured()
    figures.take_queries(queries)
    counts = (figures.answered, figures.refused, figures.empty, figures.failed)
    assert counts == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("values", "share", "value"),
    [
        ([], 0.5, None),
        ([3.0], 0.95, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.95, 2.0),
    ],
)
def test_percentiles_are_of_the_nearest_rank(
    values: list[float], share: float, value: float | None
) -> None:
    assert percentile(values, share) == value


def test_every_document_answers_its_question() -> None:
    assert len(facts(FULL.documents)) == FULL.documents
    for fact in facts(FULL.documents):
        assert f"{fact.founder} founded {fact.town}" in document(fact)


def test_recovery_counts_from_the_providers_return() -> None:
    queries = [Asked(0.0, 1.0, "answered"), Asked(3.0, 2.5, "empty"), Asked(2.0, 4.0, "answered")]
    run = measured(queries=queries)
    run.take_outage(1.0, 5.0)
    assert run.recovery == 1.0
    assert run.calls_while_down == 2
    run.take_outage(1.0, 6.5)
    assert run.recovery is None


# ---------------------------------------------------------------------- what it shows


def results(**changes: Any) -> Result:
    return {e.name: (measured(), measured(**changes)) for e in EXPERIMENTS}


def test_the_table_has_both_instances_side_by_side() -> None:
    lost = {"processed": 17, "failed": 3}
    result = results(recovery=12.0, refusal=0.0004, refusal_retry_after=4.0, documents=lost)
    table = shown(as_table(result))
    for text in ("18 of 20", "100 ms", "never", "12.0 s", "4.0 s", "< 1 ms", "worse"):
        assert text in table
    for experiment in EXPERIMENTS:
        assert table.count(experiment.title) == 1
    assert " ".join(RULE.split()[:5]) in table


def test_the_figures_are_plain_json() -> None:
    result = results(recovery=2.0)
    report = json.loads(json.dumps(as_json(result, seed=3, scale=FULL, took=51.23)))
    assert report["seed"] == 3
    assert report["took"] == 51.2
    assert report["scale"]["documents"] == 20
    assert report["rule"] == RULE
    assert report["experiments"]["dead"]["protected"]["failed_documents"] == 2
    assert report["experiments"]["outage"]["rows"][-1] == {
        "row": "first answer after its return",
        "alone": "never",
        "protected": "2.0 s",
        "verdict": "better",
    }


def chart(alone: Measured, protected: Measured) -> Chart:
    row = Row("answered", "1", "2", Verdict.BETTER)
    return Chart(title="down", alone=alone, protected=protected, trouble=(1.0, 2.0), rows=[row])


def test_the_chart_shows_calls_queries_verdicts_and_the_outage() -> None:
    drawn = ET.fromstring(draw([chart(measured(), measured())] * 2))  # noqa: S314
    assert len(drawn.findall(f"{SVG}circle")) == 8
    texts = [text.text or "" for text in drawn.iter(f"{SVG}text")]
    assert texts.count("better") == 2
    assert texts.count("down") == 2
    assert RULE in " ".join(texts)
    assert float(drawn.attrib["viewBox"].split()[-1]) > max(
        float(text.attrib["y"]) for text in drawn.iter(f"{SVG}text")
    )


def test_the_chart_of_no_data_is_valid() -> None:
    assert ET.fromstring(draw([chart(Measured(), Measured())])).tag == f"{SVG}svg"  # noqa: S314


def test_the_live_view_shows_each_instance() -> None:
    all_progress = {
        (e.name, protected): Progress() for e in EXPERIMENTS for protected in (False, True)
    }
    registry = Guards(settings=Settings())
    registry.get("llm").breaker.open()

    class Running:
        guards = registry

        class provider:  # noqa: N801
            count = staticmethod(lambda: 42)

    class Bare(Running):
        guards = None  # type: ignore[assignment]

    all_progress["flaky", False].rig = Bare()  # type: ignore[assignment]
    all_progress["flaky", True].rig = Running()  # type: ignore[assignment]
    all_progress["dead", True].done = True
    all_progress["dead", True].queries.asked.append(Asked(0.0, 1.0, "refused"))
    table = shown(live_table(EXPERIMENTS, all_progress, started=0.0))
    for text in ("42", "llm open", "0/1/0", "starting", "done", "none"):
        assert text in table
