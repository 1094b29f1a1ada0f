"""The tutorial does what it shows: its programs run in its order, and print what it prints."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT

TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "docs/tutorial.zh.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SEEN_ELSEWHERE = {"python3", ".", "pip", "mkdir"}  # the installation: tests/test_wheel.py
PROGRAMS = {"alone.py", "protected.py", "own.py", "test_own.py"}


def steps() -> Iterator[tuple[str, str, str]]:
    """The kind of each block, the file that the text before it names, and its content."""
    end = 0
    for found in BLOCK.finditer(TUTORIAL):
        names = re.findall(r"`(\w+\.py)`", TUTORIAL[end : found.start()])
        yield found[1], names[0] if names else "", found[2]
        end = found.end()


def same_shape(line: str) -> str:
    """A line without what differs from run to run: numbers, and what a circuit just does."""
    line = re.sub(r"(circuit .*?is) (half-)?open.*", r"\1 open", line, flags=re.IGNORECASE)
    return re.sub(r"\d+(\.\d+)?", "N", line).strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorial")
    for kind, name, text in steps():
        if kind == "python":
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def commands() -> list[tuple[str, str]]:
    """Each command that runs a program, with what the tutorial says that it prints."""
    found = list(steps())
    return [
        (block.strip(), following[2])
        for (kind, _, block), following in zip(found, [*found[1:], ("", "", "")], strict=True)
        if kind == "sh" and "python " in block
    ]


@pytest.mark.parametrize(("command", "printed"), commands(), ids=[each for each, _ in commands()])
def test_a_program_of_the_tutorial_prints_what_it_shows(
    command: str, printed: str, folder: Path
) -> None:
    _, _, arguments = command.partition("python ")
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, *shlex.split(arguments)],
        cwd=folder,
        env={**os.environ, "RESILIENCE_QUERY__PATIENCE": "12"},  # enough on a busy machine
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert [*map(same_shape, ran.stdout.splitlines())] == [*map(same_shape, printed.splitlines())]


def test_every_command_of_the_tutorial_is_run_by_some_test() -> None:
    lines = [line for kind, _, block in steps() if kind == "sh" for line in block.splitlines()]
    rest = [line for line in lines if shlex.split(line)[0] not in SEEN_ELSEWHERE]
    programs = [line for line in rest if PROGRAMS.intersection(shlex.split(line))]
    assert len(programs) == len(PROGRAMS)
    others = [line for line in rest if line not in programs]
    assert all(line.startswith("lightrag-resilience ") for line in others)  # test_docs.py runs them


def test_the_chinese_readme_has_the_errors_and_the_imports_of_the_english_one() -> None:
    english, chinese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))
    for wanted in (r"^\| `(\w+)`", r"^from .*|^@.*?\)|^await \w+\(\w+\)"):
        assert re.findall(wanted, english, re.MULTILINE) == re.findall(
            wanted, chinese, re.MULTILINE
        )


def test_the_chinese_tutorial_has_the_same_programs_and_commands() -> None:
    assert [found.groups() for found in BLOCK.finditer(CHINESE)] == [
        found.groups() for found in BLOCK.finditer(TUTORIAL)
    ]
