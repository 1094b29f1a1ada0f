"""The command line, bad inputs first of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lightrag_resilience import __main__
from lightrag_resilience.cli import app as cli
from lightrag_resilience.cli.app import app
from lightrag_resilience.config import process_environment
from lightrag_resilience.config.reference import env_example, json_schema

ATTEMPTS = "RESILIENCE_LLM__RETRY__ATTEMPTS"


def run(*arguments: str, **variables: str) -> Result:
    environ = {f"RESILIENCE_{name}": value for name, value in variables.items()}
    return CliRunner().invoke(app, arguments, env=environ | {"COLUMNS": "200"})


def test_no_command_prints_the_help() -> None:
    assert "doctor" in run().output


def test_env_file_sets_variables_that_are_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    file.write_text('RESILIENCE_LLM__RETRY__ATTEMPTS="7"\nRESILIENCE_LLM__RETRY__BUDGET=9\nLONE\n')
    monkeypatch.setenv("RESILIENCE_LLM__RETRY__ATTEMPTS", "2")
    monkeypatch.setenv("RESILIENCE_LLM__RETRY__BUDGET", "")
    monkeypatch.delenv("RESILIENCE_LLM__RETRY__BUDGET")
    shown = run("--env-file", str(file), "config", "llm", "--json")
    values = {row["field"]: row["value"] for row in json.loads(shown.output)["values"]}
    assert (values["retry.attempts"], values["retry.budget"]) == ("2", "9")
    monkeypatch.undo()


def test_a_missing_env_file_is_one_line(tmp_path: Path) -> None:
    ran = run("--env-file", str(tmp_path / "none"), "status")
    assert ran.exit_code == 2
    assert "cannot be read: No such file" in ran.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("RESILIENCE_X=1\n".encode("utf-16"), "is in UTF-16, as PowerShell's > writes it"),
        ("RESILIENCE_X=1\n".encode("utf-16-be"), "is in UTF-16"),
        ("A=1\n# Schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel\n".encode("latin-1"), "line 2"),
        (b"A" * 2_000_000, "has more than"),
    ],
)
def test_an_env_file_in_another_encoding_is_one_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / ".env"
    file.write_bytes(content)
    ran = run("--env-file", str(file), "config")
    assert (ran.exit_code, type(ran.exception)) == (2, SystemExit)
    assert said in ran.stderr
    assert ran.stdout == ""


def test_an_env_file_may_begin_with_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ATTEMPTS, "")
    monkeypatch.delenv(ATTEMPTS)
    file = tmp_path / ".env"
    file.write_bytes(f"{ATTEMPTS}=7\r\n".encode("utf-8-sig"))
    shown = json.loads(run("--env-file", str(file), "config", "llm", "--json").output)
    assert [row["value"] for row in shown["values"] if row["field"] == "retry.attempts"] == ["7"]
    monkeypatch.undo()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such paths")
def test_an_env_file_that_is_a_pipe_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert run("--env-file", str(pipe), "acl").exit_code == 0  # without a writer
    for path in ("/dev/zero", str(tmp_path)):
        ran = run("--env-file", path, "config")
        assert (ran.exit_code, "cannot be read" in ran.stderr) == (2, True)
    monkeypatch.setattr(process_environment, "_PIPE_TIMEOUT", 0.0)
    holder = os.open(pipe, os.O_RDWR)
    try:
        assert "Its writer does not write" in run("--env-file", str(pipe), "config").stderr
    finally:
        os.close(holder)


def test_the_doctor_shows_the_policies_in_force() -> None:
    shown = run("doctor", "llm.openai", "storage", LLM__RETRY__ATTEMPTS="7")
    assert shown.exit_code == 0
    (row,) = (line for line in shown.output.splitlines() if "RETRY__ATTEMPTS" in line)
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["7 *", "3"]
    assert shown.output.count("*") == 2  # the value and the title's explanation


def test_the_doctor_shows_no_policies_without_a_name() -> None:
    verdict, *_, last = run("doctor").output.splitlines()
    assert verdict == "Nothing was found that is wrong."
    assert last == "`lightrag-resilience config` shows every value."
    assert "RETRY__ATTEMPTS" not in run("doctor").output


@pytest.mark.parametrize("command", ["doctor", "demo"])
def test_wrong_variables_end_every_command_first(command: str, tmp_path: Path) -> None:
    arguments = [command] if command == "doctor" else [command, "--output", str(tmp_path)]
    ran = run(*arguments, LLM__RETRY__ATTEMPTS="0", FOO="1")
    assert ran.exit_code == 2
    assert "2 settings are wrong:" in ran.stderr
    assert ran.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_created_ends_the_demo_first(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    ran = run("demo", "--output", str(taken))
    assert ran.exit_code == 2
    assert str(taken) in ran.stderr


@pytest.mark.parametrize("arguments", [["dem"], ["demo", "--seed", "x"], ["doctor", "--x"]])
def test_a_wrong_argument_is_a_usage_error(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.exit_code == 2
    assert "Traceback" not in ran.output


def test_version_prints_the_version() -> None:
    from lightrag_resilience import __version__  # noqa: PLC0415

    assert run("--version").stdout.strip() == f"lightrag-resilience {__version__}"


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "lightrag_resilience", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    assert "demo" in ran.stdout


# ---------------------------------------------------------------------- where output goes


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    environ = {**os.environ, **options.pop("env", {})}
    command = [sys.executable, "-m", "lightrag_resilience", *arguments]
    return subprocess.run(  # noqa: S603 - our own interpreter
        command, env=environ, stderr=subprocess.PIPE, timeout=60, check=False, **options
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252:strict"])
@pytest.mark.parametrize("arguments", [["doctor", "llm"], ["config"], ["set", "--help"]])
def test_an_ascii_terminal_gets_ascii_replacements(encoding: str, arguments: list[str]) -> None:
    ran = process(*arguments, stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding})
    assert (ran.returncode, ran.stderr) == (0, b"")
    if encoding == "ascii" and arguments[0] == "doctor":
        assert b"...__RETRY__ATTEMPTS" in ran.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no bytes in a command line")
def test_an_unencodable_name_is_no_traceback() -> None:
    ran = process("config", os.fsdecode(b"llm.\xff"), stdout=subprocess.PIPE)
    assert b"Traceback" not in ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such paths")
@pytest.mark.parametrize("arguments", [["config"], ["config", "--json"], ["doctor"]])
def test_a_closed_pipe_is_exit_code_141(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = process(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="There is no full disk here")
@pytest.mark.parametrize("arguments", [["config"], ["config", "--json"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as disk:
        ran = process(*arguments, stdout=disk)
    assert ran.returncode == 2
    assert ran.stderr.startswith(b"The output cannot be written: No space left")


@pytest.mark.parametrize("every", ["inf", "nan", "0", "-1", "1e309", "0.05", "99d", "soon"])
def test_an_invalid_update_interval_is_a_usage_error(every: str) -> None:
    ran = run("watch", "--every", every, "--times", "1", REDIS_URL="redis://127.0.0.1:1")
    assert (ran.exit_code, type(ran.exception)) == (2, SystemExit)
    assert every in ran.output


# ---------------------------------------------------------------------- the server


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    pytest.importorskip("lightrag.api")
    from lightrag_resilience.integrations.lightrag import server  # noqa: PLC0415

    seen: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda *args, **options: seen.append((args, options)))
    return seen


def test_serve_help_begins_with_this_commands_options(served: list[Any]) -> None:
    ran = run("serve", "--gunicorn", "--help")
    assert ran.output.index("--gunicorn") < ran.output.index("LightRAG's own server:")
    assert served == [((["--help"],), {"gunicorn": True})]  # and goes on with LightRAG's


def test_serve_reports_an_unreadable_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_bytes("RESILIENCE_DEGRADE=true\n".encode("utf-16"))
    ran = run("serve", "--port", "9000")
    assert (ran.exit_code, ".env is in UTF-16" in ran.stderr, served) == (2, True, [])
    Path(".env").write_bytes("A_NAME_OF_A_TEST=1\n".encode("utf-8-sig"))
    monkeypatch.setenv("A_NAME_OF_A_TEST", "")
    monkeypatch.delenv("A_NAME_OF_A_TEST")
    assert run("serve").exit_code == 0
    assert os.environ["A_NAME_OF_A_TEST"] == "1"
    assert len(served) == 1
    monkeypatch.undo()


# ---------------------------------------------------------------------- names and places


@pytest.mark.parametrize("command", [["config"], ["doctor"], ["open", "--new"]])
@pytest.mark.parametrize("name", ["", "lllm.x", "x" * 5000, "llm.\n"])
def test_an_invalid_dependency_name_is_one_line(command: list[str], name: str) -> None:
    ran = run(*command, name, REDIS_URL="redis://127.0.0.1:1")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("The dependency's name")


def test_the_doctor_says_that_a_journal_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, said in (
        (tmp_path, "is no regular file"),
        (tmp_path / "file" / "journal", "cannot be written"),
    ):
        ran = run("doctor", "llm", SHUTDOWN_JOURNAL=str(path))
        assert (ran.exit_code, said in ran.output) == (1, True)
    for path in (tmp_path / "file", tmp_path / "new" / "journal"):
        assert run("doctor", "llm", SHUTDOWN_JOURNAL=str(path)).exit_code == 0
    assert not (tmp_path / "new").exists()


def test_a_terminal_without_columns_gets_eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert "RETRY__ATTEMPTS" in CliRunner().invoke(app, ["config", "llm"]).output


@pytest.mark.parametrize(
    ("option", "written"), [("--env-example", env_example), ("--schema", json_schema)]
)
def test_config_prints_the_reference_of_variables_even_while_some_are_wrong(
    option: str, written: Callable[[], str]
) -> None:
    ran = run("config", option, LLM__RETRY__ATTEMPTS="0")
    assert (ran.exit_code, ran.stdout) == (0, written())


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130
