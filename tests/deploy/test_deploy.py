"""Rules, dashboard and runbooks: they ask for metrics that exist, and the alerts come when due."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightrag_resilience.telemetry.metric_catalog import METRICS
from support.paths import ROOT

pytestmark = pytest.mark.once
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
EXPOSED = {
    name
    for metric in METRICS
    for name in (
        {f"{metric.full_name}_{end}" for end in ("bucket", "count", "sum")}
        if metric.kind == "histogram"
        else {metric.full_name}
    )
}

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not there: apt-get install prometheus"
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def asked_for(query: str) -> set[str]:
    """Names of metrics in a query; those of recording rules have colons."""
    without_texts = re.sub(r'"[^"]*"', "", query)
    return set(re.findall(r"[\w:]*lightrag_resilience[\w:]*", without_texts))


@promtool
@pytest.mark.parametrize(("task", "file"), [("check", "rules.yml"), ("test", "tests.yml")])
def test_promtool_finds_the_rules_right(task: str, file: str) -> None:
    command = ["promtool", task, "rules", file]
    ran = subprocess.run(  # noqa: S603 - a fixed command
        command, cwd=RULES.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_rules_ask_for_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert asked_for(rule["expr"]) or rule["expr"].startswith("up{")
        assert asked_for(rule["expr"]) <= EXPOSED | recorded


@pytest.mark.parametrize("name", ["write_rules", "write_dashboards"])
def test_files_are_what_their_scripts_write(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    texts = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["texts"]()
    assert {path.resolve() for path in texts} <= {RULES, *DASHBOARDS}
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, "run `make docs`"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_asks_for_metrics_that_exist_and_says_what_it_shows(dashboard: Path) -> None:
    content = json.loads(dashboard.read_text(encoding="utf-8"))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert content["panels"]
    for panel in content["panels"]:
        assert panel["title"].endswith("?")
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            names = asked_for(target["expr"])
            assert names <= EXPOSED | recorded
            assert names or re.match(r"[\w (,)]*(up|ALERTS)\{", target["expr"])


def test_no_two_panels_of_a_dashboard_lie_on_each_other() -> None:
    for dashboard in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(dashboard.read_text(encoding="utf-8"))["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert max(x for x, _ in cells) < 24
            assert not cells & taken
            taken |= cells


def test_every_alert_has_a_runbook_and_a_test_of_when_it_comes_and_when_not() -> None:
    runbooks = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (\w+)$", runbooks, re.MULTILINE)
    alerts = [rule["alert"] for rule in rules() if "alert" in rule]
    assert titles == alerts
    tests = yaml.safe_load((RULES.parent / "tests.yml").read_text(encoding="utf-8"))["tests"]
    seen = {
        (check["alertname"], bool(check["exp_alerts"]))
        for test in tests
        for check in test["alert_rule_test"]
    }
    assert seen == {(alert, fires) for alert in alerts for fires in (True, False)}
