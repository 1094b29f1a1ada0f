"""The page of variables, the example of a .env and the JSON schema say what the code does."""

from __future__ import annotations

import functools
import io
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from dotenv import dotenv_values

from lightrag_resilience import Policy, SettingsError
from lightrag_resilience.config.reference import env_example, json_schema, variables_page
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.config.validation import Setting
from support.declared import VARIABLES, bounds_of
from support.paths import ROOT

WRITTEN: dict[str, Callable[[], str]] = {
    "docs/variables.md": variables_page,
    ".env.example": env_example,
    "docs/settings.schema.json": json_schema,
}
LINE = "RESILIENCE_LLM_OPENAI__RETRY__ATTEMPTS"


page = functools.cache(variables_page)
env_file = functools.cache(env_example)


@functools.cache
def schema() -> Any:
    return json.loads(json_schema())


@functools.cache
def validator() -> Any:
    return pytest.importorskip("jsonschema").Draft202012Validator(schema())


def example() -> dict[str, str]:
    """The example with every variable set."""
    text = re.sub("^#(RESILIENCE_)", r"\1", env_file(), flags=re.MULTILINE)
    return {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}


def typed(text: str) -> Any:
    """A value as YAML would have it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def schema_accepts(variables: dict[str, Any]) -> bool:
    return bool(validator().is_valid(variables))


def loader_accepts(name: str, value: Any) -> bool:
    try:
        load_settings({name: str(value)})
    except SettingsError as error:
        return "but must be" not in str(error)  # a contradiction is none of the field's own
    return True


# ---------------------------------------------------------------------- all three


@pytest.mark.parametrize("file", WRITTEN)
def test_a_written_file_is_up_to_date(file: str) -> None:
    assert (ROOT / file).read_text(encoding="utf-8") == WRITTEN[file](), "write it: make docs"


@pytest.mark.no_cover
@pytest.mark.parametrize("name", VARIABLES)
def test_every_setting_has_a_sentence_and_is_in_every_file(name: str) -> None:
    setting = VARIABLES[name]
    assert setting.sentence.endswith(".")
    assert len(setting.sentence) > 20
    row = f"| `{name}` |" if name.count("__") < 2 else f"| `{setting.name.upper()}` |"
    assert row in page()
    assert f"\n#{name}=" in env_file()
    named = schema()["properties"].get(name) or next(
        value for key, value in schema()["patternProperties"].items() if re.search(key, name)
    )
    assert named["description"] == setting.sentence


@pytest.mark.parametrize("name", VARIABLES)
def test_every_number_has_a_lowest_and_a_highest_value(name: str) -> None:
    hint = VARIABLES[name].hint
    assert (bounds_of(hint) is not None) == ("number" in VARIABLES[name].allowed)


# ---------------------------------------------------------------------- the example


def test_the_example_sets_nothing_as_it_is() -> None:
    assert dotenv_values(stream=io.StringIO(env_file())) == {}


def test_the_example_with_all_variables_set_is_the_defaults() -> None:
    settings = load_settings(example())
    assert settings.policy_for("orders") == Policy()
    assert set(example()) == set(VARIABLES)
    plain = Settings(
        overrides_by_section=settings.overrides_by_section, explicitly_set=settings.explicitly_set
    )
    assert settings == plain


# ---------------------------------------------------------------------- the schema


def test_the_schema_is_one() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_schema_accepts_the_example_and_what_it_holds_as_defaults() -> None:
    assert schema_accepts({name: typed(value) for name, value in example().items()})
    defaults = {name: each["default"] for name, each in schema()["properties"].items()}
    assert schema_accepts(defaults)


@pytest.mark.no_cover
@pytest.mark.parametrize("name", VARIABLES)
def test_the_schema_and_the_code_accept_the_same_values(name: str) -> None:
    bounds = bounds_of(VARIABLES[name].hint)
    values: list[Any] = ["none", True, "nonsense", 0, -1, 1.5]
    if bounds is not None:
        step = 1 if bounds.is_whole else 0.5
        values += [bounds.low - step, bounds.low, bounds.low + step]
        values += [bounds.high - step, bounds.high, bounds.high + step]
        values = [value for value in values if value is not True]  # no text for a number says it
    if VARIABLES[name].hint is bool or "true" in VARIABLES[name].allowed:
        values = [value for value in values if value not in (0, 1)] + [False]
    if is_text(VARIABLES[name]):
        values = ["none"]
    for value in values:
        assert schema_accepts({name: value}) == loader_accepts(name, value), value


def is_text(setting: Setting) -> bool:
    return bounds_of(setting.hint) is None and not setting.allowed.startswith(("one of", "true"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (LINE, 0),
        (LINE, 21),
        (LINE, "3"),
        (LINE, math.pi),
        (LINE.replace("RETRY", "RETRI"), 3),
        ("RESILIENCE_LLM__OPENAI__RETRY__ATTEMPTS", 3),
        ("RESILIENCE_ATTEMPTS", 3),
        ("RESILIENCE_LLM__BREAKER__MODE", "on"),
        ("RESILIENCE_STATUS_TOKEN", "too short"),
        ("RESILIENCE_REDIS_PREFIX", "two words"),
    ],
)
def test_the_schema_refuses_what_makes_no_sense(name: str, value: object) -> None:
    assert not schema_accepts({name: value})


def test_the_schema_leaves_other_variables_alone() -> None:
    assert schema_accepts({LINE: 3, "OPENAI_API_KEY": "x", "WORKERS": 4})
