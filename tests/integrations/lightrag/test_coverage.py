"""Each private name of LightRAG is known; one that a release lacks is named and breaks nothing."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

pytest.importorskip("lightrag")

import lightrag

from lightrag_resilience import UnsupportedCallError
from lightrag_resilience.cli.app import app
from lightrag_resilience.integrations.lightrag import compat, coverage
from lightrag_resilience.integrations.lightrag.compat import PRIVATE_NAMES, RAG, PrivateName
from lightrag_resilience.integrations.lightrag.coverage import Cover, Coverage, compatibility_page
from support.paths import ROOT

pytestmark = pytest.mark.lightrag
PROGRAM = ROOT / "tests" / "support" / "renamed_lightrag.py"
SOURCE = ROOT / "src" / "lightrag_resilience"
COMPAT = "integrations/lightrag/compat.py"
PUBLIC = {  # documented by LightRAG
    *("LightRAG", "QueryParam", "ROLES", "RoleLLMConfig", "DocStatus", "EmbeddingFunc"),
    *("Tokenizer", "openai_complete_if_cache", "openai_embed", "jina_rerank"),
}
RENAMED = {str(name): number for number, name in enumerate(PRIVATE_NAMES) if not name.until}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


# ---------------------------------------------------------------------- the installed release


@pytest.mark.parametrize("name", PRIVATE_NAMES, ids=str)
def test_the_installed_release_has_a_name_if_the_table_says_so(name: PrivateName) -> None:
    is_expected = numbers(lightrag.__version__) >= numbers(name.since)
    assert coverage._Finder(lightrag.LightRAG).has(name) is is_expected, (
        f"LightRAG {lightrag.__version__} moved {name}, which is used to {name.purpose}"
    )


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert written == compatibility_page(), "write it: make docs"


# ---------------------------------------------------------------------- a release without a name


@pytest.fixture(scope="module")
def renamed() -> dict[int, Any]:
    """For each name by its number, what happens with a LightRAG that calls it otherwise."""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, check=True, timeout=900
    )
    found = map(json.loads, filter(None, done.stdout.splitlines()))
    return {each.pop("number"): each for each in found}


@pytest.mark.once
@pytest.mark.skipif(
    numbers(lightrag.__version__) < (1, 5, 6), reason="other names are missing there as well"
)
@pytest.mark.parametrize("name", RENAMED)
def test_a_release_that_renamed_it_is_told_and_works(name: str, renamed: dict[int, Any]) -> None:
    found, lost = renamed[RENAMED[name]], PRIVATE_NAMES[RENAMED[name]]
    assert "error" not in found, found["error"]
    unguarded = {each["name"]: each["reason"] for each in found["seams"] if each["reason"]}
    for seam in lost.seams:
        assert name in unguarded[seam]
        assert lost.loss in unguarded[seam]
    (warning,) = found["warnings"]
    for text in (name, *lost.seams, lost.loss, "To do: "):
        assert text in warning
        assert text in found["refusal"]
    assert "RESILIENCE_STRICT is true" in found["refusal"]
    assert found["answer"] == "Ada founded Alderwick."


def test_a_name_without_a_parameter_in_use_is_missing() -> None:
    name = PrivateName(RAG, "aquery_llm", ("queries",), "", "", parameters=("query", "nothing"))
    assert coverage._Finder(lightrag.LightRAG).has(name) is False


def test_a_seam_is_unknown_where_the_code_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_source(*_: object) -> NoReturn:
        raise OSError

    monkeypatch.setattr(pkgutil, "get_data", no_source)
    seams = {seam.name: seam for seam in Coverage(version="1.5.7").seams()}
    assert seams["server.app"].cover is Cover.UNKNOWN
    assert "cannot be read" in seams["server.app"].reason
    assert Coverage(version="1.5.7").is_guarded("server.app")


def test_the_same_warning_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = PrivateName(RAG, "gone_for_this_test", ("queries",), "", "queries are late")
    monkeypatch.setattr(coverage, "PRIVATE_NAMES", (gone,))
    for _ in range(2):
        Coverage().report()
    assert len(caplog.messages) == 1
    with pytest.raises(UnsupportedCallError, match=r"queries are late, as LightRAG\.gone_for_this"):
        Coverage().report(strict=True)


def test_the_doctor_does_not_know_a_storage_that_an_application_registers() -> None:
    variables = {"LIGHTRAG_GRAPH_STORAGE": "MineStorage"}
    shown = CliRunner().invoke(app, ["doctor", "--lightrag", "--json"], env=variables)
    seams = {each["name"]: each for each in json.loads(shown.stdout)["seams"]}
    graph = seams["storage.chunk_entity_relation_graph"]
    assert graph["cover"] == "unknown"
    assert "LIGHTRAG_GRAPH_STORAGE is MineStorage" in graph["reason"]
    assert seams["storage.doc_status"]["cover"] == "guarded"
    assert {*compat.STORAGES} == {name.removeprefix("storage.") for name in seams} & {
        *compat.STORAGES
    }


@pytest.mark.parametrize("strict", ["true", "false"])
def test_the_doctor_ends_with_an_error_where_protect_would_refuse(
    strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = PrivateName(RAG, "gone", ("queries", "rerank"), "", "queries are late")
    monkeypatch.setattr(coverage, "PRIVATE_NAMES", (gone,))
    shown = CliRunner().invoke(app, ["doctor", "--lightrag"], env={"RESILIENCE_STRICT": strict})
    assert f"LightRAG {lightrag.__version__}: queries, rerank are not guarded: " in shown.stdout
    assert shown.stdout.count("To do: install another release of LightRAG") == 1
    assert shown.exit_code == (1 if strict == "true" else 0)


# ---------------------------------------------------------------------- one module names them


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_what_is_imported_from_lightrag_is_public() -> None:
    imported = {
        (file, alias.name)
        for file, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and re.match(r"lightrag(\.|$)", node.module or "")
        for alias in node.names
        if node.level == 0
    }
    assert {each for each in imported if each[1] not in PUBLIC} == set()


def test_each_private_attribute_of_lightrag_is_named_in_one_module_and_in_its_table() -> None:
    theirs = set()
    for path in Path(lightrag.__file__).parent.rglob("*.py"):
        theirs |= set(re.findall(r"\b_[a-z]\w+", path.read_text(encoding="utf-8")))
    used, own = set(), set()
    for file, tree in modules():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(attr=name, ctx=ast.Load()):
                    used.add((file, name))
                case ast.Constant(value=str(name)):
                    used.add((file, name))
                case ast.Attribute(attr=name) | ast.Name(id=name, ctx=ast.Store()):
                    own.add(name)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    own.add(name)
                case ast.ClassDef(name=name):
                    own.add(name)
    found = {(file, name) for file, name in used if name in theirs - own}
    assert {each for each in found if each[0] != COMPAT} == set()
    known = {name.name for name in PRIVATE_NAMES}
    unlisted = {name for _, name in found if not any(name in each for each in known)}
    assert unlisted == set(), "what is it for, and what is lost without it? See private_names.txt"


def test_each_name_in_a_constant_of_compat_is_in_the_table() -> None:
    constants = [value for name, value in vars(compat).items() if name.isupper()]
    several = [value for value in constants if isinstance(value, (tuple, dict))]
    used = {it for it in chain(constants, *several) if isinstance(it, str) and it.isidentifier()}
    by_provider = {"azure_openai", "pgtable", *compat._RERANKERS}  # LightRAG may lack them
    known = [f"{name.holder} {name.name}" for name in PRIVATE_NAMES]
    assert {it for it in used - by_provider if not any(it in each for each in known)} == set()


@pytest.mark.parametrize("row", ["lightrag | gone | 1.5.0", "lightrag | gone | 1.5.0 form 1 | x"])
def test_a_row_of_another_shape_is_an_error(row: str) -> None:
    with pytest.raises(ValueError, match="values to unpack"):
        [*compat._names_in(f"seam: loss\n  {row}")]
