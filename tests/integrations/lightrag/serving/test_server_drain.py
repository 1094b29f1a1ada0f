"""LightRAG's own server at its end: SIGTERM amid an ingest and a stream, kill -9 at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightrag")
pytest.importorskip("fastapi", reason="LightRAG's server comes with lightrag-hku[api]")
pytest.importorskip("jwt", reason="LightRAG's server comes with lightrag-hku[api]")

from lightrag_resilience.testing.redis_server import RedisServer
from support.drains import killed, stopped_during_ingest
from support.kills import killed_at_random, workers_killed

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

WORKERS = 2


async def test_a_server_stopped_by_sigterm_loses_no_document(tmp_path: Path) -> None:
    ended = await stopped_during_ingest(tmp_path, sentences=20)
    assert '"response"' in ended.stream or '"error"' in ended.stream, ended
    assert ended.repeated <= 1
    assert ended.log.count("Successfully finalized 12 storages") == 1


async def test_workers_of_gunicorn_stopped_by_sigterm_lose_no_document(tmp_path: Path) -> None:
    options = ("--gunicorn", "--workers", str(WORKERS))
    ended = await stopped_during_ingest(tmp_path, *options, budget=40.0)
    assert '"response"' in ended.stream or '"error"' in ended.stream, ended
    assert ended.repeated <= 1
    assert ended.log.count("Successfully finalized 12 storages") == WORKERS
    assert "SIGKILL" not in ended.log
    assert ended.code == 0


async def test_accepted_documents_survive_a_killed_server(tmp_path: Path) -> None:
    result = await killed(tmp_path, 3, 7)
    assert result.unanswered == 3
    assert result.lost == set()
    assert set(result.end) == {"processed"}


async def test_workers_killed_during_ingest_and_recovery_lose_nothing_with_redis(
    tmp_path: Path,
) -> None:
    options = ("--gunicorn", "--workers", str(WORKERS))
    with RedisServer() as redis:
        done = await killed_at_random(
            tmp_path,
            1,
            *options,
            moments=("ingest", "catch-up"),
            RESILIENCE_REDIS_URL=redis.url,
            RESILIENCE_RECOVERY_DELAY="1",
        )
    assert done.is_whole, done
    assert done.lines["Resuming"] <= len(done.kills) + 1  # only workers that resume log it


async def test_workers_killed_without_redis_lose_nothing_while_the_master_lives(
    tmp_path: Path,
) -> None:
    options = ("--gunicorn", "--workers", str(WORKERS))
    done = await workers_killed(tmp_path, 1, *options, RESILIENCE_RECOVERY_DELAY="1")
    assert done.is_whole, done
    assert done.lines["Resuming"] <= len(done.kills) + 1


async def test_a_server_killed_during_recovery_and_drain_loses_nothing(
    tmp_path: Path,
) -> None:
    done = await killed_at_random(
        tmp_path, 1, moments=("ingest", "catch-up", "drain"), RESILIENCE_RECOVERY_DELAY="1"
    )
    assert done.is_whole, done
