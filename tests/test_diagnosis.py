"""What the doctor finds, in settings and in Redis; and where each value comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from typer.testing import CliRunner, Result

from lightrag_resilience import (
    BreakerPolicy,
    LimitPolicy,
    Policy,
    RetryPolicy,
    TimeoutPolicy,
)
from lightrag_resilience._diagnosis import Finding, Level, examine
from lightrag_resilience.cli import app
from lightrag_resilience.policy import FAMILIES
from lightrag_resilience.settings import lightrag_timeouts
from lightrag_resilience.testing.redis_server import RedisServer

QUEUES = {"llm": 240.0, "embedding": 30.0}


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "250", **variables})


def found_in(name: str = "x", **parts: Any) -> list[Finding]:
    return examine(name, Policy(**parts), QUEUES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_has_no_error(family: str) -> None:
    found = examine(family, Policy.for_name(family), lightrag_timeouts({}))
    assert [finding for finding in found if finding.level is Level.ERROR] == []


@pytest.mark.parametrize(
    ("parts", "level", "word"),
    [
        ({"timeout": TimeoutPolicy(attempt=70, total=60), "breaker": BreakerPolicy(probe_lease=90)},
         Level.ERROR, "TIMEOUT__TOTAL above"),
        ({"timeout": TimeoutPolicy(attempt=31, total=60)}, Level.WARNING, "twice"),
        ({"retry": RetryPolicy(initial_backoff=60, max_backoff=90)}, Level.WARNING, "INITIAL"),
        ({"timeout": TimeoutPolicy(gap=10, stream_total=5)}, Level.WARNING, "GAP"),
        ({"breaker": BreakerPolicy(probe_lease=29)}, Level.WARNING, "PROBE_LEASE"),
        ({"breaker": BreakerPolicy(slow_call=30)}, Level.WARNING, "SLOW_CALL"),
        ({"limit": LimitPolicy(rpm=0.5, max_wait=59), "timeout": TimeoutPolicy(total=None)},
         Level.WARNING, "not a second"),
        ({"limit": LimitPolicy(rpm=1.9)}, Level.WARNING, "LIMIT__MAX_WAIT or"),
        ({"limit": LimitPolicy(tpm=499)}, Level.ERROR, "LIMIT__TPM"),
        ({"limit": LimitPolicy(tpm=500, max_wait=60)}, Level.WARNING, "below TIMEOUT__TOTAL"),
    ],
)  # fmt: skip
def test_settings_that_fight_are_found(parts: dict[str, Any], level: Level, word: str) -> None:
    found = found_in(**parts)
    assert [finding.level for finding in found if word in finding.advice] == [level]


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"timeout": TimeoutPolicy(attempt=30, total=60, gap=5, stream_total=5)},
        {"timeout": TimeoutPolicy(attempt=40, total=60), "retry": RetryPolicy(attempts=1)},
        {"timeout": TimeoutPolicy(attempt=None, total=None)},
        {"breaker": BreakerPolicy(probe_lease=30, slow_call=29)},
        {"breaker": BreakerPolicy(mode="disabled", probe_lease=1)},
        {"limit": LimitPolicy(rpm=2, tpm=500)},
    ],
)
def test_settings_that_agree_are_not(parts: dict[str, Any]) -> None:
    assert found_in(**parts) == []


@pytest.mark.parametrize(("total", "count"), [(479.0, 0), (480.0, 1), (None, 1)])
def test_a_call_must_end_before_lightrags_queue_ends_it(total: float | None, count: int) -> None:
    timeout = TimeoutPolicy(attempt=None, total=total)
    assert len(found_in("llm.openai", timeout=timeout)) == count
    assert found_in("storage.orders", timeout=timeout) == []


def test_lightrags_timeouts_are_read_as_it_reads_them() -> None:
    assert lightrag_timeouts({"LLM_TIMEOUT": "100"})["llm"] == 100
    assert lightrag_timeouts({"LLM_TIMEOUT": "soon"})["llm"] == 240


def test_the_doctor_tells_scripts_what_it_found() -> None:
    ran = run("doctor", "llm.openai", "--json", LLM_TIMEOUT="100")
    assert ran.exit_code == 1
    (finding,) = (it for it in json.loads(ran.output)["findings"] if it["level"] == "error")
    assert finding["subject"] == "llm.openai"
    assert "200 s" in finding["problem"]
    assert "LLM_TIMEOUT" in finding["advice"]


def test_warnings_are_trouble_only_where_asked_for() -> None:
    wrong = {"RESILIENCE_STORAGE__BREAKER__PROBE_LEASE": "1"}
    shown = run("doctor", "storage", **wrong)
    assert shown.exit_code == 0
    assert "warning: storage: a probe loses its place after 1 s" in shown.output
    assert run("doctor", "storage", "--strict", **wrong).exit_code == 1


# ---------------------------------------------------------------------- Redis


def test_a_redis_that_is_fit_passes_and_keeps_nothing() -> None:
    with RedisServer() as server:
        ran = run("doctor", "storage", "--json", RESILIENCE_REDIS_URL=server.url)
        assert (ran.exit_code, json.loads(ran.output)) == (0, {"findings": []})
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0


def test_a_redis_that_is_away_is_told_apart() -> None:
    with RedisServer() as server:
        url = server.url
    ran = run("doctor", "storage", RESILIENCE_REDIS_URL=url)
    assert ran.exit_code == 3
    assert "nothing answers at this address" in ran.output


def test_a_redis_that_drops_any_key_is_an_error() -> None:
    with RedisServer() as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        ran = run("doctor", "storage", RESILIENCE_REDIS_URL=server.url)
        assert ran.exit_code == 1
        assert "allkeys-lru" in ran.output
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "volatile-lru")
        assert run("doctor", "storage", RESILIENCE_REDIS_URL=server.url).exit_code == 0


def test_missing_rights_are_named_and_the_printed_acl_has_them_all() -> None:
    with RedisServer() as server:
        with redis.Redis.from_url(server.url) as client:
            line = run("acl", "--user", "ada").output.replace("PASSWORD", "secret").strip()
            client.execute_command(*line.split())
            url = server.url.replace("://", "://ada:secret@")
            ran = run("doctor", "storage", "--json", RESILIENCE_REDIS_URL=url)
            (seen,) = json.loads(ran.output)["findings"]
            assert (ran.exit_code, seen["level"]) == (0, "warning")
            client.execute_command("ACL", "SETUSER", "ada", "-zadd", "-publish")
        ran = run("doctor", "storage", RESILIENCE_REDIS_URL=url)
        assert ran.exit_code == 1
        assert "this user may not run zadd" in ran.output.lower().replace("'", "")
        assert "secret" not in ran.output


# ---------------------------------------------------------------------- where values come from


def value_in(ran: Result, field: str) -> tuple[str, str]:
    (row,) = (row for row in json.loads(ran.output)["values"] if row["field"] == field)
    return row["value"], row["source"]


def test_each_value_has_its_source() -> None:
    ran = run(
        "config",
        "llm.openai",
        "--json",
        RESILIENCE_LLM__RETRY__ATTEMPTS="7",
        RESILIENCE_LLM_OPENAI__RETRY__BUDGET="9",
        RESILIENCE_DEFAULT__RETRY__BUDGET="8",
    )
    assert value_in(ran, "retry.attempts") == ("7", "RESILIENCE_LLM__RETRY__ATTEMPTS")
    assert value_in(ran, "retry.budget") == ("9", "RESILIENCE_LLM_OPENAI__RETRY__BUDGET")
    assert value_in(ran, "timeout.attempt") == ("120.0", "default")


def test_an_override_in_redis_wins_and_the_address_is_hidden() -> None:
    with RedisServer() as server:
        env = {"RESILIENCE_REDIS_URL": server.url, "RESILIENCE_LLM__LIMIT__RPM": "5"}
        assert run("set", "RESILIENCE_LLM__LIMIT__RPM=60", **env).exit_code == 0
        ran = run("config", "llm", "--json", **env)
        source = "override in Redis of RESILIENCE_LLM__LIMIT__RPM"
        assert value_in(ran, "limit.rpm") == ("60.0", source)
        assert server.url not in ran.output
        assert "override in Redis" in run("config", **env).output
    assert run("config", "llm", **env).exit_code == 3
