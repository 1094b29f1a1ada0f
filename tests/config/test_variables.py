"""The page of variables says what the code does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from lightrag_resilience import SettingsError
from lightrag_resilience.config.policies import PARTS
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.config.variables import PLAIN, describe_variables
from support.paths import ROOT

PAGE = ROOT / "docs" / "variables.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == describe_variables(), "write it anew: make docs"


def test_the_page_is_what_the_module_prints() -> None:
    command = [sys.executable, "-m", "lightrag_resilience.config.variables"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    assert printed.stdout == describe_variables()


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_field_has_a_row_with_a_meaning(part: str) -> None:
    policy: Any = PARTS[part]
    section = describe_variables().partition(f"## `…__{part.upper()}__…`")[2].partition("## `")[0]
    for entry in fields(policy):
        (row,) = (
            line for line in section.splitlines() if line.startswith(f"| `{entry.name.upper()}`")
        )
        meaning = row.split(" | ")[3].strip(" |")
        assert len(meaning) > 20


@pytest.mark.parametrize("plain", PLAIN, ids=lambda plain: plain.name)
def test_variables_of_no_dependency_are_described_as_they_are_read(plain: Any) -> None:
    attribute = plain.name.removeprefix("RESILIENCE_").lower()
    default = getattr(Settings(), attribute)
    shown = str(default).lower() if isinstance(default, bool) else str(default).removesuffix(".0")
    assert plain.default == ("none" if default is None else shown)
    if plain.allowed == "the path of a file":
        return
    with pytest.raises(SettingsError, match=plain.name):
        load_settings({plain.name: "no sense"})
