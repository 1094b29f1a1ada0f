"""What an operator on call sees and does, with real workers and a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import redis
from rich.console import Console
from typer.testing import CliRunner, Result

from lightrag_resilience import State
from lightrag_resilience.circuit.outcomes import OutcomeCounts
from lightrag_resilience.cli.app import app
from lightrag_resilience.cli.rendering import as_page
from lightrag_resilience.shared_state.cluster_view import Overview
from lightrag_resilience.shared_state.messages import Announcement, Description
from lightrag_resilience.testing.redis_server import RedisServer
from support.processes import until
from support.workers import Workers, workers

NAME = "llm.made-up"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def two(server: RedisServer) -> Iterator[Workers]:
    with workers(server.url, number=2, QUORUM="1") as two:
        yield two


@pytest.fixture(autouse=True)
def _closed(two: Workers, server: RedisServer) -> None:
    two.each("behave", fails=0)
    run(server, "reset", "--yes")
    assert all(answer["at"] for answer in two.each("until", state="closed"))
    two.each("call", times=10)
    until(lambda: breaker_in_json(server).get("calls", 0) >= 20)


def run(server: RedisServer | None, *arguments: str, **variables: str) -> Result:
    environ = {f"RESILIENCE_{name}": value for name, value in variables.items()}
    if server is not None:
        environ["RESILIENCE_REDIS_URL"] = server.url
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160", **environ})


def breaker_in_json(server: RedisServer) -> dict[str, Any]:
    """The breaker that `status` lists; nothing until a worker has reported to Redis."""
    listed = json.loads(run(server, "status", "--json").output)["breakers"]
    assert len(listed) <= 1
    return dict(*listed)


def row_of(shown: Result, name: str = NAME) -> list[str]:
    (row,) = (line for line in shown.output.splitlines() if name in line and "│" in line)
    return [cell.strip() for cell in row.split("│")[1:-1]]


def trip(two: Workers) -> None:
    two[0].request("behave", fails=5)
    two[0].request("call", times=5)
    assert two[1].request("until", state="open")["at"]


def test_status_of_a_healthy_cluster_ends_with_0(server: RedisServer) -> None:
    shown = run(server, "status")
    assert shown.exit_code == 0
    assert row_of(shown)[1] == "closed"
    assert int(row_of(shown)[3]) >= 20
    assert row_of(shown)[4:7] == ["0", "0", "2"]
    assert re.search("^2 workers on .+\nAll breakers are closed$", shown.output, re.MULTILINE)


def test_status_of_an_open_breaker_says_why_and_until_when_and_ends_with_1(
    server: RedisServer, two: Workers
) -> None:
    trip(two)
    shown = run(server, "status")
    assert shown.exit_code == 1
    assert row_of(shown)[1:3] == [
        "open",
        "after 5 failures in a row, the last ConnectionRefusedError",
    ]
    assert row_of(shown)[7] in {"in 30 s", "in 29 s", "in 28 s"}
    sentence = (
        rf"Not closed: {NAME}, open for \d+ s, after 5 failures in a row, "
        r"the last ConnectionRefusedError; next probe in \d\d s\. "
        r"To do: check its address and the network"
    )
    assert re.search(sentence, shown.output)


def test_status_json_lists_breakers_and_workers(server: RedisServer, two: Workers) -> None:
    two[0].request("behave", fails=1)
    two[0].request("call", times=1)
    until(lambda: breaker_in_json(server).get("failed"))
    seen: dict[str, Any] = json.loads(run(server, "status", "--json").output)
    (breaker,) = seen["breakers"]
    assert (breaker["name"], breaker["state"], breaker["failed"]) == (NAME, "closed", 1)
    assert breaker["calls"] >= 21
    assert [worker["diverged"] for worker in seen["workers"]] == [[], []]
    assert {worker["pid"] for worker in seen["workers"]} == {worker.process.pid for worker in two}


def test_status_names_a_worker_with_an_open_breaker_of_its_own() -> None:
    with RedisServer() as server, workers(server.url, number=2, QUORUM="2") as two:
        two[0].request("behave", fails=5)
        two[0].request("call", times=5)
        until(lambda: "rejects on its own" in run(server, "status").output)
        shown = run(server, "status")
        assert shown.exit_code == 1
        pid = two[0].process.pid
        assert re.search(rf"Process {pid} on .+ rejects on its own: {NAME}", shown.output)


def test_an_isolation_applies_to_all_workers_with_author_and_reason(
    server: RedisServer, two: Workers
) -> None:
    done = run(server, "isolate", NAME, "--for", "10m", "--reason", "they migrate [red]")
    assert done.exit_code == 0
    assert re.match(
        rf"{NAME} is open in all workers for 10 m: by \S+ on .+: they migrate \[red\]", done.output
    )
    for answer in two.each("until", state="open"):
        assert answer["retry_after"] > 590
    assert two[1].request("call", times=5)["refused"] == 5
    assert "they migrate [red]" in row_of(run(server, "status"))[2]
    assert row_of(run(server, "status"))[7] in {"ends in 10 m", "ends in 9 m 59 s"}
    assert run(server, "close", NAME).output.startswith(f"{NAME} is closed in all workers: by ")
    assert all(answer["at"] for answer in two.each("until", state="closed"))


def test_opening_by_hand_lasts_as_long_as_the_policy_says(
    server: RedisServer, two: Workers
) -> None:
    done = run(server, "open", NAME, "--reason", "a test", LLM__BREAKER__OPEN_FOR="20")
    assert "for 20 s" in done.output
    for answer in two.each("until", state="open"):
        assert 15 < answer["retry_after"] <= 20
        assert answer["reason"].endswith(": a test")


def test_a_reset_says_what_it_would_do_and_then_does_it(server: RedisServer, two: Workers) -> None:
    trip(two)
    asked = run(server, "reset")
    assert (asked.exit_code, asked.stderr) == (
        2,
        "This closes 1 breaker in all workers; add --yes to do it\n",
    )
    assert two[0].request("snapshot")["state"] == "open"
    assert run(server, "reset", "--yes").output == f"Closed in all workers: {NAME}\n"
    assert all(answer["at"] for answer in two.each("until", state="closed"))


@pytest.mark.parametrize("command", [["open"], ["close"], ["isolate", "--for", "1m"]])
def test_an_unknown_breaker_needs_the_option_new(server: RedisServer, command: list[str]) -> None:
    done = run(server, *command, "llm.made-upp")
    assert done.exit_code == 2
    assert f"Known: {NAME}. Add --new" in done.stderr
    new = run(server, *command, "llm.brand new", "--new")
    assert new.exit_code == 0
    assert row_of(run(server, "status"), "llm.brand new")[0] == "llm.brand new"
    with redis.Redis.from_url(server.url) as client:
        client.delete("lr:cb:{llm.brand%20new}:s")


@pytest.mark.parametrize("duration", ["10x", "0", "8d"])
def test_a_wrong_duration_is_a_usage_error(server: RedisServer, duration: str) -> None:
    done = run(server, "isolate", NAME, "--for", duration)
    assert done.exit_code == 2
    assert "is no duration such as 90s, 10m or 2h" in done.stderr


def test_watch_prints_the_page_several_times(server: RedisServer) -> None:
    shown = run(server, "watch", "--times", "2", "--every", "0.1")
    assert shown.exit_code == 0
    assert NAME in shown.output


def test_watch_continues_while_redis_is_unavailable() -> None:
    shown = run(None, "watch", "--times", "2", "--every", "0.1", REDIS_URL="redis://127.0.0.1:1/0")
    assert shown.exit_code == 0
    assert "Redis cannot be used: nothing answers at 127.0.0.1:1" in shown.output
    assert shown.output.endswith("\n")


def test_ctrl_c_ends_watch_without_output(server: RedisServer) -> None:
    script = f"""
import os, signal, threading
os.environ["RESILIENCE_REDIS_URL"] = {server.url!r}
from lightrag_resilience import State
from lightrag_resilience.circuit.outcomes import OutcomeCounts
from lightrag_resilience.cli.rendering import as_page
from lightrag_resilience.cli.app import app
from lightrag_resilience.shared_state.cluster_view import Overview
from lightrag_resilience.shared_state.messages import Announcement, Description
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
app(["watch"])
"""
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert NAME in ran.stdout


@pytest.mark.parametrize(
    "command", [["status"], ["open", NAME], ["isolate", NAME, "--for", "1m"], ["reset", "--yes"]]
)
def test_an_unreachable_redis_is_exit_code_3(
    command: list[str],
) -> None:
    with RedisServer("--requirepass", "right") as closed:
        wrong = closed.url.replace("redis://", "redis://:wrong-password@")
        done = run(None, *command, REDIS_URL=wrong)
    assert done.exit_code == 3
    assert done.stdout == ""
    assert done.stderr == (
        f"Redis cannot be used (the user or the password is refused, at 127.0.0.1:{closed.port}), "
        "so each process has breakers of its own until it can\n"
    )


@pytest.mark.parametrize("command", [["status"], ["watch"], ["close", NAME]])
def test_commands_need_a_redis_address(command: list[str]) -> None:
    done = run(None, *command)
    assert done.exit_code == 2
    assert done.stderr.startswith("RESILIENCE_REDIS_URL is not set, so each process has breakers")


@pytest.mark.parametrize("command", [["status"], ["watch"], ["acl"]])
def test_wrong_variables_end_the_command(command: list[str]) -> None:
    done = run(None, *command, REDIS_URL="http://:secret@host")
    assert done.exit_code == 2
    assert "RESILIENCE_REDIS_URL must begin with" in done.stderr
    assert "secret" not in done.output


def test_a_malformed_heartbeat_is_ignored(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        for number, text in enumerate(["nonsense", "[]", '["host", "pid"]', '{"a": 1}', "[1, 2]"]):
            client.set(f"lr:worker:{number}", text, px=5000)
        client.set("lr:worker:6", '["h\\u001b[31most", 1]', px=5000)
    shown = run(server, "status")
    assert "3 workers on h[31most, " in shown.output
    with redis.Redis.from_url(server.url) as client:
        client.delete(*(f"lr:worker:{number}" for number in range(7)))


def test_a_malformed_breaker_name_is_ignored(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.hset("lr:cb:{%1b[31m}:s", "st", "C")
        shown = run(server, "status")
        assert "[31m" not in shown.output
        assert shown.exit_code == 0
        client.delete("lr:cb:{%1b[31m}:s")


def test_a_narrow_terminal_shows_names_whole(server: RedisServer) -> None:
    environ = {"COLUMNS": "80", "RESILIENCE_REDIS_URL": server.url}
    shown = CliRunner().invoke(app, ["status"], env=environ)
    assert row_of(shown)[:2] == [NAME, "closed"]


def test_the_printed_acl_allows_sharing_and_all_commands() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as admin:
        line = run(None, "acl", "--user", "ada").output.replace("PASSWORD", "secret")
        admin.execute_command(*line.split())
        url = server.url.replace("redis://", "redis://ada:secret@")
        with workers(url, number=2) as two:
            trip(two)
            assert run(None, "status", REDIS_URL=url).exit_code == 1
            assert run(None, "reset", "--yes", REDIS_URL=url).exit_code == 0
            assert admin.acl_log() == []


# ---------------------------------------------------------------------- set and unset


RPM = "RESILIENCE_LLM__LIMIT__RPM"


@pytest.fixture
def _as_before(two: Workers, server: RedisServer) -> Iterator[None]:
    yield
    with redis.Redis.from_url(server.url) as client:
        client.delete("lr:overrides")
    assert all(answer["ok"] for answer in two.each("until_policy", **limit_of(None)))


def limit_of(rpm: float | None) -> dict[str, Any]:
    return {"part": "limit", "field": "rpm", "value": rpm}


@pytest.mark.usefixtures("_as_before")
def test_a_variable_is_set_in_all_workers_without_a_restart(
    two: Workers, server: RedisServer
) -> None:
    done = run(server, "set", f"{RPM}=60", "--reason", "they [red] ask for it")
    assert done.exit_code == 0, done.output
    assert done.output == f"{RPM} is 60 in all workers, within 4 s\n"
    for answer in two.each("until_policy", **limit_of(60.0)):
        assert answer["ok"]
        assert any("they [red] ask for it" in line for line in answer["log"])
    shown = run(server, "status").output
    assert f"{RPM} is 60 by " in shown
    assert "they [red] ask for it" in shown
    overrides = json.loads(run(server, "status", "--json").output)["overrides"]
    assert overrides[RPM]["value"] == "60"
    done = run(server, "unset", RPM.lower())
    assert done.output == f"{RPM} has the value of each worker's environment, within 4 s\n"
    assert all(answer["ok"] for answer in two.each("until_policy", **limit_of(None)))
    assert json.loads(run(server, "status", "--json").output)["overrides"] == {}


@pytest.mark.usefixtures("_as_before")
def test_a_later_worker_applies_the_overrides(server: RedisServer) -> None:
    assert run(server, "set", f"{RPM}=90").exit_code == 0
    with workers(server.url, number=1) as late:
        assert late[0].request("until_policy", **limit_of(90.0))["ok"]


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{RPM}=-1", f"{RPM} is '-1', but must be"),
        ("RESILIENCE_LLM__LIMIT__RPN=1", "did you mean RESILIENCE_LLM__LIMIT__RPM?"),
        ("RESILIENCE_REDIS_URL=redis://other", "RESILIENCE_REDIS_URL is read at the start only"),
        ("RESILIENCE_LLM__BREAKER__MIN_CALLS=9999", "MIN_CALLS"),
        (RPM, f"{RPM!r} is not NAME=VALUE"),
        ("LLM__LIMIT__RPM=7", "did you mean RESILIENCE_LLM__LIMIT__RPM?"),
        ("RESILIENCE_LLM_OPENIA__LIMIT__RPM=7", "no worker has reported such a dependency"),
    ],
)
def test_a_wrong_variable_is_rejected_and_nothing_is_set(
    server: RedisServer, text: str, problem: str
) -> None:
    done = run(server, "set", "RESILIENCE_LLM__RETRY__ATTEMPTS=7", text)
    assert done.exit_code == 2
    assert problem in done.output
    assert json.loads(run(server, "status", "--json").output)["overrides"] == {}


@pytest.mark.usefixtures("_as_before")
def test_a_variable_is_set_for_a_dependency_of_the_workers_and_for_a_new_one(
    two: Workers, server: RedisServer
) -> None:
    known = "RESILIENCE_LLM_MADE_UP__LIMIT__RPM"
    assert run(server, "set", f" {known.lower()} = 70").exit_code == 0
    assert all(answer["ok"] for answer in two.each("until_policy", **limit_of(70.0)))
    assert run(server, "unset", known).exit_code == 0
    new = "RESILIENCE_ORDERS__LIMIT__RPM"
    assert run(server, "set", f"{new}=7").exit_code == 2
    assert run(server, "set", "--new", f"{new}=7").exit_code == 0
    assert set(json.loads(run(server, "status", "--json").output)["overrides"]) == {new}


@pytest.mark.usefixtures("_as_before")
def test_a_malformed_override_is_ignored_and_can_be_unset(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.hset("lr:overrides", "Foo__LIMIT__RPM", "7")
        client.hset("lr:overrides", "RESILIENCE_LLM__LIMIT__TPM", '["x", ""]')
        assert run(server, "set", f"{RPM}=60").exit_code == 0
        assert run(server, "unset", "Foo__LIMIT__RPM").exit_code == 0
        assert run(server, "unset", "RESILIENCE_LLM__LIMIT__TPM", RPM).exit_code == 0
        assert client.hgetall("lr:overrides") == {}


def test_unset_needs_an_override(server: RedisServer) -> None:
    done = run(server, "unset", RPM)
    assert (done.exit_code, done.output) == (
        2,
        "Only variables that `set` has overridden can be unset. Overridden: none\n",
    )


@pytest.mark.usefixtures("_as_before")
def test_malformed_overrides_are_reported_and_change_nothing(
    two: Workers, server: RedisServer
) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.hset("lr:overrides", RPM, '["x", "by me"]')
    for answer in two.each("until_log", text="Overrides in Redis are ignored"):
        assert answer["ok"]
    assert all(answer["ok"] for answer in two.each("until_policy", **limit_of(None)))
    assert two[0].request("call", times=3)["fine"] == 3


def test_a_narrow_terminal_gives_its_width_to_the_reason() -> None:
    why = "after 5 failures in a row, the last ConnectionRefusedError"
    there = Announcement(State.OPEN, 1, 4.0, 1, why)
    bad = OutcomeCounts(9, 9, {"HTTP 401": 9}, 0, "HTTP 401 (AuthenticationError)", 9)
    closed = Announcement(State.CLOSED, 1, 0.0, 0, "since the start")
    seen = Overview(
        {
            "embedding.openai": Description(there, "held", 0, 0, 0, 1, 0, None),
            "llm.openai": Description(closed, "held", 0, 0, 0, 1, 0, None, bad),
            "rerank": Description(replace(there, state=State.HALF_OPEN), "held", 0, 0, 0, 1, 0, 3),
        },
        [],
    )
    assert not seen.is_well
    narrow, wide = (Console(width=width, file=StringIO()) for width in (80, 160))
    for console in (narrow, wide):
        console.print(as_page(seen, console.width))
    text = narrow.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "after 5 failures in a row, the last" in text
    assert "9 of 9" in text
    assert "next probe due" in text
    assert "Not well: llm.openai answers 401 to 9 of 9 calls: check its key" in text
    shown = wide.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert why in shown
    assert "9 (100%)" in shown


def test_outside_a_terminal_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = CliRunner().invoke(app, ["config", "llm"]).output
    assert "RESILIENCE_LLM__LIMIT__RPM" in shown
    assert "…" not in shown
    verdict, *_ = run(None, "doctor", "llm").output.splitlines()
    assert verdict.startswith("Nothing was found") or verdict.endswith(":")
