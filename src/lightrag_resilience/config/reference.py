"""The declared settings as a Markdown page, an annotated ``.env`` and a JSON schema.

``python -m lightrag_resilience.config.reference`` prints the page.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from pydantic import TypeAdapter

from .dependency_names import DEFAULT
from .policies import FAMILIES, PARTS, Policy
from .process_settings import ProcessSettings
from .validation import Setting, settings_of, text_format
from .variables import PREFIX, PROCESS_VARIABLES, variable

__all__ = ["env_example", "json_schema", "variables_page"]

_PAGE = """\
# Variables

<!-- Written by `make docs` from the code. -->

`RESILIENCE_<DEPENDENCY>__<PART>__<FIELD>`, with two underscores between. The dependency is the
guard's name in capitals, with one underscore for every run of other characters: `llm.openai` is
`LLM_OPENAI`. The more exact name wins: `LLM_OPENAI` over `LLM` over `DEFAULT`, and any of them over
the code. `none` turns a field off where that is allowed; an empty variable counts as not set.
Durations are seconds.

Everything wrong is reported at once, by `lightrag-resilience doctor` or when the first guard is
made. [.env.example](../.env.example) has all variables to copy, and
[settings.schema.json](settings.schema.json) checks them in an editor or in CI;
`lightrag-resilience config` prints both, with `--env-example` and `--schema`.
"""
_EXAMPLE = """\
# All variables of lightrag_resilience with their defaults. Written by `make docs` from the code.
# To change one, remove the # before its name.
"""
_SECTION = """\
# DEFAULT is for every dependency. Replace it by a family (LLM, EMBEDDING, RERANK, STORAGE) or by
# one dependency (LLM_OPENAI for llm.openai). The most exact name wins.
"""
_ROWS = "| {} | default | allowed | meaning |\n|---|---|---|---|"


def variables_page() -> str:
    """All variables as a Markdown page."""
    settings = settings_of(ProcessSettings)
    lines = [_PAGE, _ROWS.format("variable")]
    lines += (
        _row(name, _text(settings[key].default), settings[key])
        for name, key in PROCESS_VARIABLES.items()
    )
    for part, policy in PARTS.items():
        lines += (f"\n## `…__{part.upper()}__…`\n", f"{_about(policy)}\n", _ROWS.format("field"))
        for name, each in settings_of(policy).items():
            lines.append(_row(name.upper(), ", ".join(_defaults(part, each)), each))
    return "\n".join([*lines, ""])


def env_example() -> str:
    """All variables with their sentences and defaults, as a file ``.env`` with no variable set."""
    settings = settings_of(ProcessSettings)
    lines = [_EXAMPLE]
    for name, key in PROCESS_VARIABLES.items():
        lines += _annotated(name, settings[key], [_text(settings[key].default)])
    lines.append(_SECTION)
    for part, policy in PARTS.items():
        lines += (_comment(f"{part.upper()}: {_about(policy)}"), "")
        for name, each in settings_of(policy).items():
            lines += _annotated(variable(DEFAULT, part, name), each, _defaults(part, each))
    return "\n".join(lines)


def json_schema() -> str:
    """A JSON schema (2020-12) for variables with typed values, as YAML has them: ``3``, ``true``.

    Other variables than ``RESILIENCE_*`` may be among them; unknown ones of these may not.
    """
    fields = "|".join(
        f"{part}__(?:{'|'.join(settings_of(policy))})".upper() for part, policy in PARTS.items()
    )
    names = [{"pattern": f"^(?!{PREFIX})"}, {"enum": [*PROCESS_VARIABLES]}]
    names.append({"pattern": f"^{_dependency()}__(?:{fields})$"})
    settings = settings_of(ProcessSettings)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Variables of lightrag_resilience",
        "type": "object",
        "propertyNames": {"anyOf": names},
        "properties": {name: _schema_of(settings[key]) for name, key in PROCESS_VARIABLES.items()},
        "patternProperties": {
            f"^{_dependency()}__{part.upper()}__{name.upper()}$": _schema_of(each)
            for part, policy in PARTS.items()
            for name, each in settings_of(policy).items()
        },
    }
    return json.dumps(schema, indent=2) + "\n"


# ---------------------------------------------------------------------- one setting


def _row(name: str, default: str, setting: Setting) -> str:
    return f"| `{name}` | {default} | {setting.allowed} | {setting.sentence} |"


def _annotated(name: str, setting: Setting, defaults: list[str]) -> Iterator[str]:
    own = f" By family: {', '.join(defaults[1:])}." if defaults[1:] else ""
    yield _comment(f"{setting.sentence} Allowed: {setting.allowed}.{own}")
    yield f"#{name}={defaults[0]}"
    yield ""


def _comment(text: str) -> str:
    return textwrap.fill(
        text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _dependency() -> str:
    return f"{PREFIX}[A-Z0-9]+(?:_[A-Z0-9]+)*"


def _schema_of(setting: Setting) -> dict[str, Any]:
    return {"description": setting.sentence, **_values_of(setting.hint), "default": _plain(setting)}


def _values_of(hint: Any) -> dict[str, Any]:
    options = get_args(hint)
    if NoneType in options:
        return {"anyOf": [_values_of(options[0]), {"const": "none"}]}
    if (text := text_format(hint)) is not None:
        return {"type": "string"} | ({"pattern": f"^{text.pattern}$"} if text.pattern else {})
    return TypeAdapter(hint).json_schema()


def _plain(setting: Setting) -> Any:
    return "none" if setting.default is None else setting.default


def _defaults(part: str, setting: Setting) -> list[str]:
    """The default of a field, then those of families that differ."""
    texts = [_text(setting.default)]
    for family in FAMILIES:
        own = getattr(getattr(Policy.for_name(family), part), setting.name)
        if own != setting.default:
            texts.append(f"{family} {_text(own)}")
    return texts


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _about(policy: Any) -> str:
    return " ".join((inspect.getdoc(policy) or "").split())


if __name__ == "__main__":
    sys.stdout.write(variables_page())
