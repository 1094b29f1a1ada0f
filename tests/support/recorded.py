"""Hours of a service under load, with real guards and real metrics, in virtual time; for promtool.

Queries come at a steady pace and each makes one guarded call. What Prometheus would have scraped
every half a minute is kept, and is a ``promtool test rules`` file in the end.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import DocumentsCounted, QueryCompleted
from lightrag_resilience.telemetry.prometheus import observe
from lightrag_resilience.testing import VirtualTimeLoop

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yml"
NAME = "llm.openai"
EVERY = 30.0  # seconds between two scrapes
PACE = 2.0  # seconds between two queries
MINUTE = 60.0

Answers = Callable[[float], float]
"""Seconds a provider takes at a minute of the run; it raises what it fails with."""
Documents = Callable[[float], Mapping[str, int]]
"""How many documents have which status, at a minute of the run."""


@dataclass
class Recording:
    """What was scraped: for each series its samples, None where it was not there."""

    scrapes: int = 0
    samples: dict[str, list[float | None]] = field(default_factory=dict)

    def scrape(self, registry: CollectorRegistry) -> None:
        seen = {
            series(sample.name, sample.labels): sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }
        seen['up{instance="here",job="lightrag"}'] = 1.0
        for name in seen.keys() | self.samples.keys():
            kept = self.samples.setdefault(name, [None] * self.scrapes)
            kept.append(seen.get(name))
        self.scrapes += 1

    def as_input(self) -> list[dict[str, str]]:
        return [
            {"series": name, "values": " ".join("_" if v is None else f"{v:.10g}" for v in values)}
            for name, values in sorted(self.samples.items())
        ]


def series(name: str, labels: Mapping[str, str]) -> str:
    shown = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(labels.items()))
    return f"{name}{{{shown}}}"


def record(
    minutes: float, answers: Answers, documents: Documents | None = None, *, queries: bool = True
) -> Recording:
    """Live through so many minutes; without `queries` the calls belong to no query."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_live(minutes, answers, documents, queries))


async def _live(
    minutes: float,
    answers: Answers,
    documents: Documents | None,
    queries: bool,  # noqa: FBT001
) -> Recording:
    loop = asyncio.get_running_loop()
    registry, recording = CollectorRegistry(), Recording()
    guards = Guards(settings=load_settings({}), clock=loop.time)
    observation = observe(guards, registry=registry)

    async def provider() -> str:
        await asyncio.sleep(answers(loop.time() / MINUTE))
        return "an answer"

    async def query() -> None:
        began = loop.time()
        try:
            await guards.get(NAME).call(provider)
        except Exception:  # noqa: BLE001 - whatever it is, a user has no answer
            outcome = "failed"
        else:
            outcome = "success"
        if queries:
            guards.events.publish(QueryCompleted("here", outcome, loop.time() - began))

    async with asyncio.TaskGroup() as group:
        due = 0.0
        while loop.time() < minutes * MINUTE:
            if loop.time() >= due:
                for status, count in (documents(due / MINUTE) if documents else {}).items():
                    guards.events.publish(DocumentsCounted("here", status, count))
                recording.scrape(registry)
                due += EVERY
            group.create_task(query())
            await asyncio.sleep(PACE)
    observation.close()
    guards.close()
    return recording


# ---------------------------------------------------------------------- what Prometheus makes of it


def alerts() -> dict[str, Any]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def check(recording: Recording, expected: Mapping[int, set[str]], folder: Path) -> None:
    """At each of these minutes these alerts fire, and no others."""
    promtool = shutil.which("promtool")
    assert promtool is not None
    checks = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": _firing(rule, name in names)}
        for minute, names in expected.items()
        for name, rule in alerts().items()
    ]
    test = {
        "interval": f"{EVERY:g}s",
        "input_series": recording.as_input(),
        "alert_rule_test": checks,
    }
    content = {"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": [test]}
    file = folder / "recorded.yml"
    file.write_text(yaml.safe_dump(content, width=10_000_000), encoding="utf-8")
    ran = subprocess.run(  # noqa: S603 - a fixed command
        [promtool, "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _firing(rule: dict[str, Any], is_due: bool) -> list[dict[str, Any]]:  # noqa: FBT001
    if not is_due:
        return []
    summary = rule["annotations"]["summary"]
    labels = dict(rule["labels"])
    for label, value in (("dependency", NAME), ("workspace", "here")):
        if f"$labels.{label}" in summary:
            labels[label] = value
            summary = summary.replace(f"{{{{ $labels.{label} }}}}", value)
    return [{"exp_labels": labels, "exp_annotations": {**rule["annotations"], "summary": summary}}]
