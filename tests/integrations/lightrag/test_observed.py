"""A protected LightRAG lives through an outage and a drain before a real Prometheus.

Every query of every dashboard is run while it has data, and the alerts that need no
time fire when they should. How long the others take is tests/deploy/test_alerts.py's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("lightrag")
pytest.importorskip("prometheus_client")

from lightrag_resilience.testing.redis_server import RedisServer
from support.paths import ROOT
from support.ports import free_port
from support.prometheus_server import Asked, end, prometheus, until

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.lightrag,
    pytest.mark.once,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="apt-get install prometheus"),
]

SERVICE = ROOT / "tests" / "support" / "observed_service.py"
P = "lightrag_resilience_"
VARIABLES = {
    "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.01",
    "RESILIENCE_DEFAULT__BREAKER__OPEN_FOR": "1",
    "RESILIENCE_LLM__LIMIT__RPM": "1000000",
    "RESILIENCE_LLM__LIMIT__TPM": "1000000000",
    "RESILIENCE_LLM__CONCURRENCY__MAX_CONCURRENT": "4",
}
NOISE = {"LightragSlow", "LightragServerDown"}
"""Alerts that a busy machine may bring near: they would have to last for minutes."""
EMPTY = {
    "What was abandoned?": "published when a drain has ended, and this one waits to be scraped"
}
"""Panels that may show nothing, and why."""


@dataclass
class Observed:
    """The service, the controls of its faults, and its Prometheus."""

    folder: Path
    process: subprocess.Popen[bytes]
    redis: RedisServer
    metrics: Asked
    unanswered: set[tuple[str, str, str]]

    def check_queries(self) -> set[str]:
        """Repeat the queries without a result; which are still empty. A wrong query raises."""
        answered = {panel for panel in self.unanswered if self.metrics.value(panel[2]) is not None}
        self.unanswered -= answered
        return {title for _, title, _ in self.unanswered}


def panels() -> set[tuple[str, str, str]]:
    """Dashboard, title and query of each, with the values of Grafana's variables in it."""
    return {
        (path.stem, panel["title"], as_asked(target["expr"]))
        for path in (ROOT / "deploy" / "grafana").glob("*.json")
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel["targets"]
    }


def as_asked(query: str) -> str:
    return query.replace("$dependency", ".*").replace("$__rate_interval", "1m")


@pytest.fixture
def observed(tmp_path: Path) -> Iterator[Observed]:
    port = free_port()
    folder = tmp_path / "service"
    folder.mkdir()
    theirs = {name: value for name, value in os.environ.items() if "RESILIENCE_" not in name}
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        log = folder / "output.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, str(SERVICE), str(port), str(folder)],
                cwd=folder,
                env=theirs | VARIABLES | {"RESILIENCE_REDIS_URL": redis.url},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        stack.callback(end, process)
        stack.callback((folder / "seen").touch)
        metrics = stack.enter_context(prometheus(tmp_path / "prometheus", f"127.0.0.1:{port}"))
        yield Observed(folder, process, redis, metrics, panels())


def test_each_panel_has_data_and_each_alert_fires_when_it_should(observed: Observed) -> None:
    metrics = observed.metrics
    answered = f'sum({P}query_duration_seconds_count{{outcome="success"}})'
    failed = f'sum({P}query_duration_seconds_count{{outcome="failed"}})'
    until(lambda: (metrics.value(answered) or 0) > 50, "50 queries are answered")
    until(lambda: metrics.query(f"queries:{P}failed:ratio_rate5m"), "the rules are evaluated")
    assert metrics.value(failed) is None
    assert metrics.alerts("firing") == set()
    assert metrics.alerts("pending") <= NOISE
    observed.check_queries()

    (observed.folder / "down").touch()
    due = {"LightragQueriesFail", "LightragQueriesFailSlowly"}
    until(lambda: metrics.alerts("firing") >= due, "the outage is alerted")
    until(lambda: "LightragNotRecovered" in metrics.alerts("pending"), "its circuit is open")
    assert metrics.alerts("firing") == due
    # Calls fail before the circuit opens, and may be seen then.
    pending = {"LightragNotRecovered", "LightragErrors", "LightragCallsFail", *NOISE}
    assert metrics.alerts("pending") <= pending
    observed.check_queries()

    (observed.folder / "down").unlink()
    before = metrics.value(answered) or 0
    until(lambda: (metrics.value(answered) or 0) > before + 20, "queries are answered again")
    until(lambda: "LightragNotRecovered" not in metrics.alerts("pending"), "the circuit is closed")

    observed.redis.kill()
    until(lambda: "LightragRedisDown" in metrics.alerts("pending"), "Redis is missed")
    observed.check_queries()

    observed.process.terminate()
    until(
        lambda: observed.check_queries() <= set(EMPTY),
        "all have answers",
        lambda: observed.unanswered,
    )
    assert metrics.alerts("firing") <= {"LightragWorkAbandoned", *due}

    (observed.folder / "seen").touch()
    until(lambda: "LightragServerDown" in metrics.alerts("pending"), "the service is gone")
