"""Every command on a page runs, against a cluster with one broken dependency; so does code."""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lightrag_resilience import CircuitOpenError, Guards
from lightrag_resilience.cli.app import app
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.journal import AbandonedWork, Journal
from lightrag_resilience.testing.redis_server import RedisServer
from support.paths import ROOT

PAGES = [*sorted({*ROOT.glob("*.md")} - {ROOT / "CHANGELOG.md"}), *sorted(ROOT.glob("docs/*.md"))]
PROGRAM = "lightrag-resilience"
RUN_ELSEWHERE = {
    "simulate": "tests/testing/test_simulator.py starts it",
    "serve": "tests/integrations/lightrag/serving/test_server.py starts it",
    "python": "tests/docs/test_tutorial.py runs it, as the lines beside it",
    "python3": "the same",
    ".": "the same",
    "mkdir": "the same",
    "make": "tests/docs/test_documents.py knows the targets",
    ".ci/run": "it runs this",
    "pip": "tests/test_wheel.py installs it",
    ".venv/bin/python": "what scripts write is compared with what is there, or is pictures",
    "curl": "tests/integrations/lightrag/serving/test_server.py asks the same",
    "docker": "it needs containers; tests/deploy/test_compose.py reads what it reads",
}
OF_A_READER = "from my_app"  # tests/testing/test_pytest_plugin.py runs such code
ENDS_WITH = {"status": {0, 1}, "journal": {1}}  # others with 0


def shell_lines(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def inline_commands(page: Path) -> list[str]:
    return re.findall(rf"`({PROGRAM} [^`]+)`", page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a cluster in which a provider is down, and another is well."""
    with RedisServer() as server:
        folder = tmp_path_factory.mktemp("documented")
        journal = folder / "journal"
        Journal(journal).write([AbandonedWork("llm.openai", "call", "in_flight", 3.0, "SIGTERM")])
        variables = {
            "RESILIENCE_REDIS_URL": server.url,
            "RESILIENCE_SHUTDOWN_JOURNAL": str(journal),
        }
        guards = Guards(settings=load_settings(variables))
        try:
            asyncio.run(an_outage(guards))
            until_shown(variables)
            yield variables
        finally:
            guards.close()


async def an_outage(guards: Guards) -> None:
    async def well() -> None:
        """Answer."""

    async def down() -> None:
        raise ConnectionRefusedError

    await guards.get("embedding.openai").call(well)
    for _ in range(6):
        with contextlib.suppress(ConnectionRefusedError, CircuitOpenError):
            await guards.get("llm.openai").call(down)


def until_shown(variables: dict[str, str]) -> None:
    deadline = time.monotonic() + 30
    while "llm.openai" not in run(["status", "--json"], variables).output:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(words: list[str], variables: dict[str, str]) -> Result:
    return CliRunner().invoke(app, words, env={"COLUMNS": "200", **variables})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_on_a_page_runs(page: Path, cluster: dict[str, str]) -> None:
    for line in [*shell_lines(page), *inline_commands(page)]:
        words = [
            "llm.openai" if word == "NAME" else word for word in shlex.split(line, comments=True)
        ]
        if not words or words[0].startswith("RESILIENCE_") or words[0] in RUN_ELSEWHERE:
            continue
        assert words.pop(0) == PROGRAM, line
        if words[0] == "--env-file":  # of another machine, as the journal below
            words[:2] = []
        if words[0] in RUN_ELSEWHERE:
            continue
        if words[0] == "journal":
            words[1:2] = []
        ran = run(words, cluster)
        assert ran.exit_code in ENDS_WITH.get(words[0], {0}), (line, ran.output)


def test_one_command_names_the_broken_dependency_and_says_why(cluster: dict[str, str]) -> None:
    run(["open", "llm.openai", "--reason", "a staged outage"], cluster)
    ran = run(["status"], cluster)
    assert ran.exit_code == 1
    (row,) = [line for line in ran.output.splitlines() if "llm.openai" in line and "│" in line]
    assert "open" in row
    assert "a staged outage" in row
    assert "Not closed: llm.openai" in ran.output


# ---------------------------------------------------------------------- code


def stands_alone(code: str) -> bool:
    """Whether a piece of code leaves nothing to its reader: no name, and no ``...`` for a value."""
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    known = set(dir(builtins))
    for statement in compile(code, "<page>", "exec", flags).body:
        if any(
            isinstance(node, ast.Call) and "(...)" in ast.unparse(node)
            for node in ast.walk(statement)
        ):
            return False
        used, made = set(), set()
        for node in ast.walk(statement):
            match node:
                case ast.Name(id=name, ctx=ast.Load()):
                    used.add(name)
                case ast.Name(id=name) | ast.arg(arg=name):
                    made.add(name)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    made.add(name)
                case ast.alias(name=name, asname=other):
                    made.add(other or name.partition(".")[0])
        own = set() if isinstance(statement, ast.Assign) else made  # app = Wrapped(app) is not
        if not used <= known | own:
            return False
        known |= made
    return True


def pieces() -> Iterator[str]:
    for page in PAGES:
        if page.name.startswith("tutorial"):  # test_tutorial.py runs it
            continue
        text = page.read_text(encoding="utf-8")
        for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if OF_A_READER not in code and stands_alone(code):
                yield code


@pytest.mark.parametrize("code", list(pieces()))
def test_code_that_stands_alone_runs(code: str) -> None:
    program = f"""
import ast, asyncio, inspect
code = compile({code!r}, "<page>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
names = {{"__name__": "page"}}
made = eval(code, names)
if inspect.iscoroutine(made):
    asyncio.run(made)
"""
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", program],
        env={**os.environ, "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_enough_of_the_code_stands_alone_to_be_worth_it() -> None:
    assert len(list(pieces())) >= 5
