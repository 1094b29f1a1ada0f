"""The hooks of a Gunicorn config file, called as Gunicorn calls them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gunicorn")

from gunicorn.config import Config

import lightrag_resilience.integrations.gunicorn as hooks
from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.draining.supervisor import supervisor
from lightrag_resilience.draining.worker_ledger import LedgerEntry
from lightrag_resilience.shutdown import Coordinator
from support.scripts import output_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Gunicorn needs fork")

LINE = LedgerEntry("0" * 32, "GET /query", "request", time.time() - 5)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    logger = logging.getLogger("lightrag_resilience")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def server() -> Any:
    return SimpleNamespace(cfg=Config(), log=logging.getLogger("gunicorn.error"), WORKERS={})


def worker(server: Any, pid: int = 12345) -> Any:
    made = SimpleNamespace(
        pid=pid, cfg=server.cfg, log=SimpleNamespace(error_log=server.log), alive=True
    )
    hooks.pre_fork(server, made)
    return made


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    path = tmp_path / "journal"
    monkeypatch.setenv("RESILIENCE_SHUTDOWN_JOURNAL", str(path))
    return Journal(path)


def test_gunicorn_takes_all_hooks_and_nothing_else() -> None:
    config = Config()
    for name in {*hooks.__all__} - {"check_budget"}:
        config.set(name, getattr(hooks, name))


def test_the_master_needs_no_uvicorn() -> None:
    script = """
import sys
from lightrag_resilience.integrations.gunicorn import *
from lightrag_resilience.integrations import gunicorn
print(sorted({"uvicorn", "gunicorn"} & {name.partition(".")[0] for name in sys.modules}))
print(gunicorn.DrainingWorker.__name__, hasattr(gunicorn, "DrainedWorker"))
"""
    assert output_of(script) == ("[]\nDrainingWorker False\n", "")


def test_times_that_do_not_add_up_are_in_the_log(
    server: Any, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    del journal
    server.cfg.set("worker_class", "sync")
    server.cfg.set("graceful_timeout", 8)
    hooks.on_reload(server)
    assert ["sync" in message for message in caplog.messages] == [True, False]
    assert "graceful_timeout to 27" in caplog.messages[1]


def test_a_worker_that_died_with_work_in_flight_is_recorded(
    server: Any, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    died = worker(server)
    died.ledger.add(LINE)
    hooks.child_exit(server, died)
    hooks.child_exit(server, died)  # once is enough
    (record,) = journal.read()
    assert (record.name, record.kind, record.id) == (LINE.name, LINE.kind, LINE.id)
    assert (record.pid, record.signal) == (12345, "death of the worker")
    assert record.seconds > 4
    assert caplog.messages == ["Worker (pid:12345) died with 1 in flight"]


def test_a_worker_that_ended_normally_is_not_recorded(server: Any, journal: Journal) -> None:
    hooks.child_exit(server, worker(server))
    hooks.child_exit(server, SimpleNamespace(pid=1))  # from before the hooks were there
    assert list(journal.read()) == []


def test_the_master_writes_to_the_workers_own_journal(
    server: Any, journal: Journal, tmp_path: Path
) -> None:
    died = worker(server)
    died.ledger.add(LINE)
    died.ledger.journal = str(tmp_path / "own")
    hooks.child_exit(server, died)
    assert [record.name for record in Journal(tmp_path / "own").read()] == [LINE.name]
    assert list(journal.read()) == []


def test_without_a_journal_a_dead_worker_is_logged(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    died = worker(server)
    died.ledger.add(LINE)
    hooks.child_exit(server, died)
    assert caplog.messages == ["Worker (pid:12345) died with 1 in flight"]


def test_a_journal_that_cannot_be_written_is_logged(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    died = worker(server)
    died.ledger.add(LINE)
    (tmp_path / "file").touch()
    died.ledger.journal = str(tmp_path / "file" / "journal")
    hooks.child_exit(server, died)
    assert "cannot be written: " in caplog.messages[-1]


def test_workers_killed_at_exit_are_awaited_and_recorded(server: Any, journal: Journal) -> None:
    killed = worker(server)
    child = os.fork()
    if not child:
        hooks.post_fork(server, killed)
        ledger = supervisor().ledger
        assert ledger is not None
        ledger.add(LINE)
        os.kill(os.getpid(), signal.SIGKILL)
    killed.pid = child
    server.WORKERS = {child: killed}
    hooks.on_exit(server)
    assert [record.pid for record in journal.read()] == [child]
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)
    server.WORKERS = {child: worker(server, child)}
    hooks.on_exit(server)  # another has reaped it


def test_a_dead_worker_is_recorded_by_worker_exit_in_the_master(
    server: Any, journal: Journal
) -> None:
    died = worker(server)
    died.ledger.add(LINE)
    hooks.worker_exit(server, died)  # as the master calls it then
    assert len(list(journal.read())) == 1


def test_a_worker_ends_its_threads(server: Any) -> None:
    hooks.worker_exit(server, worker(server, os.getpid()))


def test_live_gauges_drop_a_dead_worker(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prometheus_client")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "gauge_livesum_12345.db").touch()
    (tmp_path / "gauge_livesum_12346.db").touch()
    hooks.child_exit(server, worker(server))
    assert [path.name for path in tmp_path.iterdir()] == ["gauge_livesum_12346.db"]


def test_a_worker_shrinks_its_drains_to_gunicorns_grace_period(server: Any) -> None:
    server.cfg.set("graceful_timeout", 10)
    hooks.post_fork(server, worker(server))
    assert supervisor().grace_period == 8
    made = Coordinator(registry=Guards(settings=load_settings({})))
    assert made._drain.phases.timeout == 8


def test_gunicorns_own_worker_keeps_its_heartbeat_and_stops_waiting_in_time(server: Any) -> None:
    beats: list[bool] = []
    closed: list[bool] = []
    made = worker(server)
    made.loop = asyncio.new_event_loop()
    made.servers = [SimpleNamespace(close=lambda: closed.append(True))]
    made.notify = lambda: beats.append(made.alive)

    async def live() -> None:
        async with Coordinator(
            registry=Guards(settings=load_settings({})), handle_signals=False
        ) as coordinator:
            made.alive = False
            await asyncio.wait_for(coordinator.stopping.wait(), 20)

    hooks.post_worker_init(made)
    assert server.cfg.graceful_timeout == 30 - 2 - 2 - 5
    made.loop.run_until_complete(live())
    made.heartbeat.cancel()
    made.loop.run_until_complete(asyncio.gather(made.heartbeat, return_exceptions=True))
    made.loop.close()
    assert beats[-1] is False
    assert closed


def test_our_log_goes_to_gunicorns_if_the_application_configured_none(server: Any) -> None:
    logger = logging.getLogger("lightrag_resilience")
    logger.propagate, logger.handlers = False, []
    server.log.handlers = [logging.NullHandler()]
    hooks.post_worker_init(worker(server))
    assert logger.handlers == server.log.handlers
    server.log.handlers = []
