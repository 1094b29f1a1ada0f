"""Builds Grafana's dashboard JSON from short descriptions of panels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RUNBOOKS = "/public/lightrag/runbooks.md"  # where compose.yml mounts docs/
WIDTH = 24  # of Grafana's grid
GREEN = "green"


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: The question that it answers.
        queries: PromQL by legend.
        kind: Grafana's panel type.
        unit: Grafana's name of the unit.
        about: What a value means, and when to worry.
        limits: Colours, each from a value on; below the first it is green.
        words: Text and colour for values.
        width: Columns of `WIDTH`.
        height: Rows of Grafana's grid.
    """

    title: str
    queries: dict[str, str]
    kind: str = "timeseries"
    unit: str = "short"
    about: str = ""
    limits: tuple[tuple[float, str], ...] = ()
    words: dict[int, tuple[str, str]] | None = None
    width: int = 12
    height: int = 7


def number(title: str, query: str, **more: Any) -> Panel:
    """A panel with one large number."""
    return Panel(title, {"": query}, "stat", width=4, height=4, **more)


def states(
    title: str, query: str, legend: str, words: dict[int, tuple[str, str]], **more: Any
) -> Panel:
    """A timeline in the colours of the states."""
    return Panel(title, {legend: query}, "state-timeline", words=words, **more)


def dashboard(
    name: str, title: str, panels: Callable[[], Iterator[Panel]], *, of_one: bool
) -> dict[str, Any]:
    """Grafana's JSON of a dashboard; `of_one` lets the reader choose only one dependency."""
    placed = list(_placed(panels()))
    chosen = "$dependency" in json.dumps(placed)
    return {
        "title": title,
        "uid": f"lightrag-{name}",
        "description": (panels.__doc__ or "").strip(),
        "tags": ["lightrag"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [
            {"title": "Runbooks", "type": "link", "url": "$runbooks", "targetBlank": True},
            {"title": "LightRAG", "type": "dashboards", "tags": ["lightrag"], "keepTime": True},
        ],
        "templating": {"list": list(_variables(of_one=of_one))[: 2 + chosen]},
        "panels": placed,
    }


def _variables(*, of_one: bool) -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    yield {"name": "runbooks", "type": "constant", "query": RUNBOOKS, "hide": 2}
    choice = {} if of_one else {"multi": True, "includeAll": True, "allValue": ".*"}
    yield {
        "name": "dependency",
        "label": "Dependency",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(lightrag_resilience_breaker_state, dependency)",
        "refresh": 2,
        "sort": 1,
        **choice,
    }


def _placed(panels: Iterator[Panel]) -> Iterator[dict[str, Any]]:
    """Place panels from left to right, row by row."""
    x = y = row = 0
    for count, panel in enumerate(panels, 1):
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        position = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        yield {"id": count, **_panel(panel), "gridPos": position}
        x, row = x + panel.width, max(row, panel.height)


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.limits or panel.words:
        steps: list[dict[str, Any]] = [{"value": None, "color": GREEN}]
        steps += [{"value": value, "color": colour} for value, colour in panel.limits]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.words:
        options = {
            str(value): {"text": text, "color": colour}
            for value, (text, colour) in panel.words.items()
        }
        defaults["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        defaults["min"] = 0
    return {
        "title": panel.title,
        "type": panel.kind,
        "description": panel.about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + count), "legendFormat": legend, "expr": query}
            for count, (legend, query) in enumerate(panel.queries.items())
        ],
    }
