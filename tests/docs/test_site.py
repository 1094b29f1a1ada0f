"""The site has every page in its menu and every public name in its reference, each described."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import yaml

import lightrag_resilience
from support.paths import ROOT

NAMES: dict[str, Any] = runpy.run_path(str(ROOT / "scripts/site/public_names.py"))
MODULES = NAMES["public_modules"]()
ADDED = {"index.md", "index.zh.md", "changelog.md", "contributing.md", "reporting.md"}
MADE = {"examples.md", "deploy.md", "commands.md", "reference/index.md"}


class Loader(yaml.SafeLoader):
    """Reads the file without what only the site's own Python can make."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)  # noqa: S506 - a safe one


def pages_of(menu: Any) -> list[str]:
    match menu:
        case str():
            return [menu]
        case dict():
            return pages_of(list(menu.values()))
    return [page for entry in menu for page in pages_of(entry)]


def test_each_page_is_in_the_menu_once() -> None:
    listed = pages_of(CONFIG["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) - ADDED - MADE == {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_each_public_name_is_described(module: Any) -> None:
    assert module.summary
    assert list(NAMES["undocumented"](module)) == []


def test_no_public_name_is_missing() -> None:
    (root,) = (module for module in MODULES if module.name == "lightrag_resilience")
    assert set(root.names) == set(lightrag_resilience.__all__)
    assert {name for group in root.groups for name in group.names} == set(root.names)
    assert "More" not in {group.heading for group in root.groups}, (
        "public_names.py has the headings"
    )
    assert len(MODULES) > 15


def test_a_name_without_a_description_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = NAMES["PublicModule"]("lightrag_resilience.events", frozenset({"_Wanted"}))
    assert list(NAMES["undocumented"](module)) == ["lightrag_resilience.events._Wanted"]


def test_nothing_comes_from_another_host() -> None:
    assert CONFIG["strict"] is True
    assert CONFIG["theme"]["font"] is False
    assert "http" not in (ROOT / "docs/site.css").read_text() + (ROOT / "docs/site.js").read_text()


def test_the_commands_of_the_site_are_those_of_the_program() -> None:
    page = runpy.run_path(str(ROOT / "scripts/site/commands.py"))["commands_page"]()
    for command in ("serve", "status", "doctor", "isolate", "set"):
        assert f"\n## {command}\n" in page
    assert "| `--reason" in page
