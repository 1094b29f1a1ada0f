"""Real Gunicorns at their end, both kinds of workers: nothing is lost in silence.

Each scenario is played once; RUNS_OF_GUNICORN=10 plays each ten times.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("gunicorn.workers.gasgi")
pytest.importorskip("uvicorn_worker")
pytest.importorskip("websockets")

from support.drain_scenarios import Outcome, outcomes
from support.masters import WORKERS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Gunicorn needs fork")

RUNS = range(int(os.environ.get("RUNS_OF_GUNICORN", "1")))
SEEN_BY_CLIENTS = {503, "RemoteProtocolError", "ReadError"}
Play = Callable[[str], Outcome]


@pytest.fixture(
    scope="module", params=[(worker, run) for run in RUNS for worker in WORKERS], ids=str
)
def play(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Plays all scenarios at once, and gives the outcome of one."""
    worker, _ = request.param
    played = asyncio.run(outcomes(tmp_path_factory.mktemp(worker), worker))

    def of(name: str) -> Outcome:
        outcome: Any = played[name]
        if isinstance(outcome, BaseException):
            raise outcome
        assert isinstance(outcome, Outcome)
        return outcome

    return of


def test_work_that_fits_into_the_budget_ends(play: Play) -> None:
    outcome = play("fits")
    assert outcome.seen["request"] == [200] * 20
    assert outcome.seen["stream"].endswith("end")
    assert outcome.seen["websocket"] == 1012
    assert sorted(outcome.done) == sorted(outcome.begun)
    assert outcome.records == {}
    assert len(outcome.marked("lifespan", "shutdown")) == len(outcome.marked("exit", "worker")) == 2


def test_work_that_does_not_fit_is_in_the_journal_before_it_is_cancelled(play: Play) -> None:
    outcome = play("fits not")
    kinds = {key.partition("-")[0] for key in outcome.records}
    assert kinds >= {"task", "after", "child", "stream", "request"}
    assert outcome.lost == set()
    assert outcome.seen["request"] == [503] * 3
    assert set(outcome.seen["stream"]) <= SEEN_BY_CLIENTS - {503}
    (child,) = (key for key in outcome.begun if key.startswith("child"))
    assert outcome.marked("ended", child)
    assert len(outcome.marked("lifespan", "shutdown")) == len(outcome.marked("exit", "worker")) == 2


def test_an_untracked_task_is_cancelled_and_named(play: Play) -> None:
    outcome = play("untracked")
    (key,) = outcome.begun
    assert outcome.marked("cancelled", key)
    assert f"Not tracked, and unfinished at the end: 1 tasks: {key}" in outcome.log


@pytest.mark.parametrize("number", ["SIGQUIT", "SIGINT"])
def test_a_fast_stop_records_everything_at_once(play: Play, number: str) -> None:
    outcome = play(number)
    assert set(outcome.records) == set(outcome.begun)
    assert {record.signal for record in outcome.records.values()} == {"SIGQUIT"}
    assert set(outcome.seen["request"]) <= SEEN_BY_CLIENTS
    assert outcome.seconds < 35  # there would have been 41 for this work
    assert len(outcome.marked("exit", "worker")) == 2


def test_sigquit_after_sigterm_records_everything_at_once(play: Play) -> None:
    outcome = play("SIGTERM, then SIGQUIT")
    assert set(outcome.records) == set(outcome.begun)
    assert set(outcome.seen["request"]) <= SEEN_BY_CLIENTS


@pytest.mark.parametrize(("signals", "count"), [("SIGTERM twice", 4), ("SIGTTOU", 10)])
def test_a_repeated_sigterm_does_not_skip_the_waiting(play: Play, signals: str, count: int) -> None:
    """Gunicorn says SIGTERM to a worker again and again."""
    outcome = play(signals)
    assert outcome.seen["request"] == [200] * count
    assert sorted(outcome.done) == sorted(outcome.begun)
    assert outcome.records == {}


def test_a_reload_loses_nothing(play: Play) -> None:
    outcome = play("SIGHUP")
    assert outcome.seen == {"request": [200] * 20, "later": [200] * 10}
    assert sorted(outcome.done) == sorted(outcome.begun)
    assert outcome.records == {}


def test_workers_that_end_after_some_requests_end_their_work_first(play: Play) -> None:
    outcome = play("max_requests")
    assert set(outcome.seen["task"]) <= SEEN_BY_CLIENTS | {200}
    assert outcome.seen["task"].count(200) > 3  # the limit of one worker
    assert sorted(outcome.done) == sorted(outcome.begun)
    assert outcome.records == {}


def test_the_master_records_the_work_of_a_killed_worker(play: Play) -> None:
    outcome = play("kill -9")
    assert outcome.lost == set()
    assert len(outcome.records) == 10
    assert {record.signal for record in outcome.records.values()} == {"death of the worker"}
    assert len({record.pid for record in outcome.records.values()}) <= 2
    assert outcome.seen["later"] == [200] * 10


def test_work_beside_a_blocked_loop_is_not_lost_when_gunicorn_kills(play: Play) -> None:
    outcome = play("blocked")
    assert outcome.lost == set()
    assert {key.partition("-")[0] for key in outcome.records} >= {"blocked", "task"}
    assert outcome.seen["later"] == [200] * 10


def test_work_is_not_lost_if_the_loop_is_blocked_at_the_end(play: Play) -> None:
    outcome = play("blocked at the end")
    assert outcome.lost == set()
    assert len(outcome.records) == 2
