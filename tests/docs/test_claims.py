"""Each claim of the README has tests that hold it, as docs/claims.md lists them."""

from __future__ import annotations

import ast
import re

import pytest

from support.paths import ROOT

ROWS = re.findall(r"^\| (.+) \| (`.+`) \|$", (ROOT / "docs/claims.md").read_text(), re.MULTILINE)
README = (ROOT / "README.md").read_text()


def plain(markdown: str) -> str:
    """The text as it is read: without marks, targets of links and breaks of lines."""
    text = re.sub(r"\]\([^)]*\)", "", markdown)
    return " ".join(re.sub(r"[*`\[\]]", "", text).split())


def claims() -> list[str]:
    """The bullets of the README, and the rows of its tables."""
    bullets = re.findall(r"^- (.+?)(?=\n- |\n\n)", README, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.+|your .+) \|$", README, re.MULTILINE)
    return [plain(claim) for claim in (*bullets, *rows)]


@pytest.mark.parametrize(("quote", "tests"), ROWS, ids=[quote for quote, _ in ROWS])
def test_each_quote_is_in_the_readme_and_its_tests_exist(quote: str, tests: str) -> None:
    assert plain(quote) in plain(README)
    for path, name in re.findall(r"`([^`:]+)::(\w+)`", tests):
        tree = ast.parse((ROOT / "tests" / path).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}, name


@pytest.mark.parametrize("claim", claims())
def test_each_claim_of_the_readme_is_quoted(claim: str) -> None:
    assert any(plain(quote) in claim for quote, _ in ROWS)


def test_claims_are_found() -> None:
    assert len(claims()) >= 5 + 9
    assert all(re.fullmatch(r"`[^`:]+::\w+`(<br>`[^`:]+::\w+`)*", tests) for _, tests in ROWS)
