"""What the README and the other pages say is so: examples run, names exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightrag_resilience.config.settings import load_settings
from support.paths import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
READERS_OWN = {"town", "own", "my_app"}  # modules that the reader of a page writes
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(language: str) -> Iterator[str]:
    for page in PAGES:
        yield from re.findall(
            rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
        )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(example: Path) -> None:
    command = [sys.executable, str(example)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("code", list(blocks("python")))
def test_every_piece_of_code_is_python_with_names_that_exist(code: str) -> None:
    tree = compile(
        code,
        "<page>",
        "exec",
        ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module not in READERS_OWN:
            module = importlib.import_module(node.module)
            for name in node.names:
                assert name.name == "*" or hasattr(module, name.name)


def test_every_variable_on_a_page_is_right() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assignments = [line for line in lines if re.match(r"RESILIENCE_\S+\s*(#|$)", line)]
    assert assignments
    load_settings(dict(line.partition("#")[0].strip().split("=", 1) for line in assignments))


def test_every_make_target_on_a_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = [shlex.split(line)[1] for block in blocks("sh") for line in block.splitlines()
            if line.startswith("make ")]  # fmt: skip
    assert {"demo", "test"} <= set(used) <= targets


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", prose(page)):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}#{anchor}"
