"""What the doctor finds, in settings and in Redis; and where each value comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner, Result

from lightrag_resilience import BreakerPolicy, LimitPolicy, Policy, RetryPolicy, TimeoutPolicy
from lightrag_resilience.cli import code_checks as _diagnosis_code
from lightrag_resilience.cli.app import app
from lightrag_resilience.cli.policy_checks import Finding, Level, examine
from lightrag_resilience.cli.process_checks import examine_process
from lightrag_resilience.config.policies import FAMILIES, LIGHTRAG_TIMEOUTS
from lightrag_resilience.config.process_environment import read_process_environment
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.testing.redis_server import RedisServer

QUEUES = {"llm": 240.0, "embedding": 30.0}


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "250", **variables})


def found_in(name: str = "x", **parts: Any) -> list[Finding]:
    return examine(name, Policy(**parts), QUEUES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_has_no_findings(family: str) -> None:
    assert examine(family, Policy.for_name(family), LIGHTRAG_TIMEOUTS) == []


@pytest.mark.parametrize(
    ("parts", "level", "word"),
    [
        ({"timeout": TimeoutPolicy(attempt=70, total=60)}, Level.ERROR, "TIMEOUT__TOTAL above"),
        ({"timeout": TimeoutPolicy(attempt=40, total=60)}, Level.WARNING, "twice"),
        ({"retry": RetryPolicy(initial_backoff=60, max_backoff=90)}, Level.WARNING, "INITIAL"),
        ({"timeout": TimeoutPolicy(gap=10, stream_total=5)}, Level.WARNING, "GAP"),
        ({"breaker": BreakerPolicy(probe_lease=5)}, Level.WARNING, "PROBE_LEASE"),
        ({"breaker": BreakerPolicy(slow_call=30)}, Level.WARNING, "SLOW_CALL"),
        ({"limit": LimitPolicy(rpm=0.5, max_wait=59), "timeout": TimeoutPolicy(total=None)},
         Level.WARNING, "not a second"),
        ({"limit": LimitPolicy(rpm=1.9)}, Level.WARNING, "LIMIT__MAX_WAIT or"),
        ({"limit": LimitPolicy(tpm=499)}, Level.ERROR, "LIMIT__TPM"),
        ({"limit": LimitPolicy(tpm=500, max_wait=60)}, Level.WARNING, "below TIMEOUT__TOTAL"),
    ],
)  # fmt: skip
def test_conflicting_settings_are_found(parts: dict[str, Any], level: Level, word: str) -> None:
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
def test_compatible_settings_have_no_findings(parts: dict[str, Any]) -> None:
    assert found_in(**parts) == []


@pytest.mark.parametrize(("total", "count"), [(479.0, 0), (480.0, 1), (None, 1)])
def test_a_call_must_end_before_lightrags_queue_ends_it(total: float | None, count: int) -> None:
    timeout = TimeoutPolicy(attempt=None, total=total)
    assert len(found_in("llm.openai", timeout=timeout)) == count
    assert found_in("storage.orders", timeout=timeout) == []


@pytest.mark.parametrize("seconds", ["1", "15", "100", "600", "86400"])
def test_inherited_timeouts_have_no_findings(seconds: str) -> None:
    names = ("LLM_TIMEOUT", "EMBEDDING_TIMEOUT", "RERANK_TIMEOUT")
    ran = run("doctor", "--json", "--strict", **dict.fromkeys(names, seconds))
    assert json.loads(ran.output) == {"findings": []}


def test_a_total_of_ones_own_has_no_findings_of_the_inherited_attempt() -> None:
    total = {"RESILIENCE_LLM__TIMEOUT__TOTAL": "100", "RESILIENCE_LLM__RETRY__ATTEMPTS": "1"}
    ran = run("doctor", "llm", "--json", "--strict", LLM_TIMEOUT="600", **total)
    assert json.loads(ran.output) == {"findings": []}


@pytest.mark.parametrize("seconds", ["250", "300", "600"])
def test_an_attempt_beyond_lightrags_timeout_gets_advice_that_works(seconds: str) -> None:
    own = {"RESILIENCE_LLM__TIMEOUT__ATTEMPT": seconds}
    (finding,) = json.loads(run("doctor", "llm", "--json", **own).output)["findings"]
    assert finding["advice"].startswith(f"set LLM_TIMEOUT={seconds}, ")
    assert json.loads(run("doctor", "llm", "--json", LLM_TIMEOUT=seconds).output)["findings"] == []


def test_doctor_json_lists_the_findings() -> None:
    own = {"RESILIENCE_LLM__TIMEOUT__TOTAL": "300"}
    ran = run("doctor", "llm.openai", "--json", LLM_TIMEOUT="100", **own)
    assert ran.exit_code == 1
    (finding,) = json.loads(ran.output)["findings"]
    assert finding["subject"] == "llm.openai"
    assert "200 s" in finding["problem"]
    assert "LLM_TIMEOUT" in finding["advice"]


def test_a_missing_tokenizer_table_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed: set[str] = {"lightrag", "tiktoken"}
    find = "lightrag_resilience.config.tokenizer_cache.find_spec"
    monkeypatch.setattr(find, lambda name: name in installed or None)
    note, table = "note: tokenizer: ", "fb374d419588a4632f3f557e76b4b70aebbca790"
    for folder in (str(tmp_path), ""):
        ran = run("doctor", "llm", "--strict", TIKTOKEN_CACHE_DIR=folder)
        assert ran.exit_code == 0
        assert "Without internet, run lightrag-download-cache" in ran.output
    (tmp_path / table).touch()
    assert note not in run("doctor", "llm", TIKTOKEN_CACHE_DIR=str(tmp_path)).output
    installed.clear()
    assert note not in run("doctor", "llm", TIKTOKEN_CACHE_DIR="").output
    assert read_process_environment({}).tokenizer_folder is not None


@pytest.mark.parametrize("command", ["doctor", "config"])
def test_an_env_file_that_only_serve_reads_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(command).stderr == ""
    Path(".env").touch()
    ran = run(command, "--json")
    assert json.loads(ran.stdout)
    assert f"lightrag-resilience --env-file .env {command}\n" in ran.stderr
    assert run("--env-file", ".env", command).stderr == ""


def test_the_default_setup_has_no_findings() -> None:
    assert json.loads(run("doctor", "--json", "--strict").output) == {"findings": []}


@pytest.mark.parametrize(
    ("variables", "around", "level", "word"),
    [
        ({"SHUTDOWN_TIMEOUT": "6"}, {}, Level.ERROR, "raise SHUTDOWN_TIMEOUT, or lower"),
        ({"SHUTDOWN_TIMEOUT": "7"}, {}, Level.WARNING, "raise SHUTDOWN_TIMEOUT"),
        ({"SHUTDOWN_TIMEOUT": "28.1"}, {}, Level.ERROR, "longer --graceful-timeout"),
        ({}, {"GUNICORN_CMD_ARGS": "--workers 2 --graceful-timeout=20"}, Level.ERROR, "longer"),
        ({}, {"WORKERS": "4"}, Level.WARNING, "RESILIENCE_REDIS_URL"),
        ({}, {"WEB_CONCURRENCY": "2"}, Level.WARNING, "RESILIENCE_REDIS_URL"),
        ({}, {"LLM_TIMEOUT": "abc"}, Level.WARNING, "set LLM_TIMEOUT to a number"),
        ({}, {"RERANK_TIMEOUT": "30s"}, Level.WARNING, "set RERANK_TIMEOUT to a number"),
    ],
)
def test_conflicting_process_settings_are_found(
    variables: dict[str, str], around: dict[str, str], level: Level, word: str
) -> None:
    settings = load_settings({f"RESILIENCE_{name}": value for name, value in variables.items()})
    (found,) = examine_process(settings, read_process_environment(around))
    assert found.level is level
    assert word in found.advice


@pytest.mark.parametrize(
    ("variables", "around"),
    [
        ({"SHUTDOWN_TIMEOUT": "8"}, {}),
        ({"SHUTDOWN_TIMEOUT": "28"}, {}),
        ({}, {"LLM_TIMEOUT": "600", "EMBEDDING_TIMEOUT": ""}),
        ({"SHUTDOWN_TIMEOUT": "50"}, {"GUNICORN_CMD_ARGS": "--graceful-timeout 60"}),
        ({"REDIS_URL": "redis://redis"}, {"WORKERS": "4", "WEB_CONCURRENCY": "x"}),
        ({}, {"WORKERS": "1", "WEB_CONCURRENCY": "4"}),
    ],
)
def test_compatible_process_settings_have_no_findings(
    variables: dict[str, str], around: dict[str, str]
) -> None:
    settings = load_settings({f"RESILIENCE_{name}": value for name, value in variables.items()})
    assert examine_process(settings, read_process_environment(around)) == []


CODE = """
import openai
from tenacity import retry, stop_after_attempt

from lightrag_resilience import resilient

again = retry(stop=stop_after_attempt(3))


@resilient("llm.fine")
async def fine(): ...

@again
async def bare(): ...

@again
@resilient("llm.outer")
async def outer(): ...

@resilient("llm.inner")
@again
async def inner(): ...

@again
@resilient("llm.both")
@again
async def both(): ...

eager = openai.AsyncOpenAI(api_key="a secret")
patient = openai.AsyncOpenAI(api_key="a secret", max_retries=0)
"""


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "application_to_examine.py").write_text(CODE)
    yield "application_to_examine"
    sys.modules.pop("application_to_examine", None)


def test_nested_retries_are_found_in_code(application: str) -> None:
    # In a process of its own: what tests before this one protected may still yield here.
    command = [sys.executable, "-m", "lightrag_resilience", "doctor", "llm", "--json"]
    ran = subprocess.run(  # noqa: S603
        [*command, "--code", application], capture_output=True, text=True, check=False, timeout=60
    )
    found = [
        (it["subject"].rpartition(".")[2], it["advice"].split(",")[0].split(":")[0])
        for it in json.loads(ran.stdout)["findings"]
    ]
    assert found == [
        ("outer", "remove that decorator"),
        ("inner", "remove that decorator"),
        ("both", "remove that decorator"),
        ("both", "remove that decorator"),
        ("eager", "create it with max_retries=0"),
    ]
    assert "a secret" not in ran.stdout + ran.stderr


@pytest.mark.processes
def test_a_client_with_disabled_retries_is_no_finding(application: str) -> None:
    with Path(f"{application}.py").open("a") as code:
        code.write("from lightrag_resilience.integrations.sdks import disable_sdk_retries\n")
        code.write("disable_sdk_retries(openai)\n")
    assert "eager" not in run("doctor", "llm", "--code", application).output


@pytest.mark.processes
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def (", "cannot be imported: "),
        ("raise ValueError('made up')", "cannot be imported: ValueError: made up"),
        ("raise BaseException('made up')", "cannot be imported: BaseException: made up"),
        ("raise KeyboardInterrupt", "cannot be imported: KeyboardInterrupt"),
        ("raise SystemExit(0)", "calls sys.exit(0) when imported: put code that runs below"),
        ("import sys; sys.exit('no')", "calls sys.exit('no') when imported"),
        ("import os; os._exit(0)", "ended its process when it was imported, by exit code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "by signal 15"),
    ],
)
def test_code_that_cannot_be_imported_is_one_line(application: str, code: str, said: str) -> None:
    Path(f"{application}.py").write_text(code)
    ran = run("doctor", "llm", "--code", application)
    assert ran.exit_code == 2
    assert ran.output.startswith(application)
    assert said in ran.output


@pytest.mark.processes
def test_an_import_that_does_not_end_times_out(
    application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(f"{application}.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.setattr(_diagnosis_code, "_IMPORT_TIMEOUT", 0.2)
    ran = run("doctor", "llm", "--code", application)
    assert (ran.exit_code, "was not imported within" in ran.output) == (2, True)


@pytest.mark.processes
def test_output_and_threads_of_the_examined_module_are_harmless(application: str) -> None:
    Path(f"{application}.py").write_text(
        "import threading\nprint('noise')\nthreading.Thread(target=threading.Event().wait).start()"
    )
    ran = run("doctor", "llm", "--json", "--code", application)
    assert (ran.exit_code, json.loads(ran.stdout)) == (0, {"findings": []})
    assert application not in sys.modules


def test_warnings_fail_only_with_strict() -> None:
    wrong = {"RESILIENCE_STORAGE__BREAKER__PROBE_LEASE": "1"}
    shown = run("doctor", "storage", **wrong)
    assert shown.exit_code == 0
    assert "warning: storage: a probe loses its permit after 5 s" in shown.output
    assert run("doctor", "storage", "--strict", **wrong).exit_code == 1


# ---------------------------------------------------------------------- Redis


def test_a_healthy_redis_passes_and_keeps_no_keys() -> None:
    with RedisServer() as server:
        ran = run("doctor", "storage", "--json", RESILIENCE_REDIS_URL=server.url)
        assert (ran.exit_code, json.loads(ran.output)) == (0, {"findings": []})
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0


def test_an_unreachable_redis_is_exit_code_3() -> None:
    with RedisServer() as server:
        url = server.url
    ran = run("doctor", "storage", RESILIENCE_REDIS_URL=url)
    assert ran.exit_code == 3
    assert "nothing answers at 127.0.0.1:" in ran.output


def test_a_redis_that_evicts_any_key_is_an_error() -> None:
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
            missing = ("zadd", "publish", "evalsha", "subscribe", "time")
            client.execute_command("ACL", "SETUSER", "ada", *(f"-{name}" for name in missing))
        ran = run("doctor", "storage", RESILIENCE_REDIS_URL=url)
        assert ran.exit_code == 1
        for name in missing:
            assert f"this user may not run {name}" in ran.output.lower()
        assert "secret" not in ran.output


def test_a_nearly_full_redis_is_a_warning() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        used = int(client.info("memory")["used_memory"])
        for most, level in ((used * 4, []), (int(used * 1.05), ["warning"])):
            client.config_set("maxmemory", most)
            ran = run("doctor", "storage", "--json", RESILIENCE_REDIS_URL=server.url)
            found = json.loads(ran.output)["findings"]
            assert [it["level"] for it in found if "% full" in it["problem"]] == level


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
    assert value_in(ran, "timeout.attempt") == ("240.0", "default")
    assert value_in(ran, "degrade") == ("False", "default")


def test_a_value_that_follows_from_lightrags_timeout_has_its_variable_as_source() -> None:
    ran = run(
        "config",
        "llm.openai",
        "--json",
        LLM_TIMEOUT="600",
        EMBEDDING_TIMEOUT="90",
        RESILIENCE_LLM__TIMEOUT__ATTEMPT="200",
    )
    assert value_in(ran, "timeout.attempt") == ("200.0", "RESILIENCE_LLM__TIMEOUT__ATTEMPT")
    assert value_in(ran, "timeout.total") == ("1195.0", "LLM_TIMEOUT")
    assert value_in(ran, "timeout.gap") == ("60.0", "default")


def test_process_settings_have_sources() -> None:
    ran = run("config", "llm", "--json", RESILIENCE_SHUTDOWN_TIMEOUT="20")
    assert value_in(ran, "shutdown_timeout") == ("20.0", "RESILIENCE_SHUTDOWN_TIMEOUT")


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


@pytest.mark.parametrize("command", ["config", "doctor", "isolate", "open"])
def test_control_characters_in_names_are_removed(command: str) -> None:
    options = ["--for", "9m"] if command == "isolate" else []
    ran = run(command, "llm.\x1b[31m[bold]x\x9b", *options)
    assert "\x1b" not in ran.output
    assert "\x9b" not in ran.output
    if command in {"config", "doctor"}:
        assert "llm.[31m[bold]x" in ran.output.replace("\n", "")
