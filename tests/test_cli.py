"""The command line, bad inputs first of all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lightrag_resilience.cli import app


def run(*arguments: str, **variables: str) -> Result:
    environ = {f"RESILIENCE_{name}": value for name, value in variables.items()}
    return CliRunner().invoke(app, arguments, env=environ | {"COLUMNS": "200"})


def test_without_a_command_it_helps() -> None:
    assert "doctor" in run().output


def test_variables_come_from_a_file_unless_they_are_set(
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


def test_a_file_of_variables_that_is_not_there_is_told(tmp_path: Path) -> None:
    ran = run("--env-file", str(tmp_path / "none"), "status")
    assert ran.exit_code == 2
    assert "cannot be read: No such file" in ran.output


def test_the_doctor_shows_the_policies_in_force() -> None:
    shown = run("doctor", "llm.openai", "storage", LLM__RETRY__ATTEMPTS="7")
    assert shown.exit_code == 0
    (row,) = (line for line in shown.output.splitlines() if "RETRY__ATTEMPTS" in line)
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["7 *", "3"]
    assert shown.output.count("*") == 2  # the value and the title's explanation


def test_the_doctor_shows_all_families_where_none_is_named() -> None:
    assert all(family in run("doctor").output for family in ("llm", "embedding", "rerank"))


@pytest.mark.parametrize("command", ["doctor", "demo"])
def test_wrong_variables_are_told_before_anything_else(command: str, tmp_path: Path) -> None:
    arguments = [command] if command == "doctor" else [command, "--output", str(tmp_path)]
    ran = run(*arguments, LLM__RETRY__ATTEMPTS="0", FOO="1")
    assert ran.exit_code == 2
    assert "2 settings are wrong:" in ran.stderr
    assert ran.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_made_is_told_before_the_demo_runs(tmp_path: Path) -> None:
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


def test_the_version_is_told() -> None:
    from lightrag_resilience import __version__  # noqa: PLC0415

    assert run("--version").stdout.strip() == f"lightrag-resilience {__version__}"


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "lightrag_resilience", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    assert "demo" in ran.stdout
