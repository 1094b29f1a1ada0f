"""The command ``config``: settings in force, an example ``.env``, and a JSON schema."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.table import Table

from lightrag_resilience.config.dependency_names import section_of
from lightrag_resilience.config.policies import FAMILIES, PARTS
from lightrag_resilience.config.reference import env_example, json_schema
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.config.variables import PROCESS_VARIABLES, variable
from lightrag_resilience.shared_state.operator_control import (
    REDIS_FAILURES,
    open_cluster,
    trouble_with_redis,
)

from .exit_codes import Exit, check_names, console, settings_or_exit, write_line
from .options import Json, Names, cell, shown

__all__ = ["config"]


@dataclass(frozen=True, slots=True)
class _Value:
    dependency: str
    field: str
    variable: str
    value: str
    source: str


def config(
    names: Names = None,
    *,
    as_json: Json = False,
    example: Annotated[
        bool, typer.Option("--env-example", help="Print a .env with all variables and exit.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema of the variables and exit.")
    ] = False,
) -> None:
    """Print all values in force and where they come from.

    Sources are defaults, variables, and overrides in Redis.
    """
    if example or schema:
        write_line((env_example() if example else json_schema()).rstrip("\n"))
        return
    settings = settings_or_exit()
    check_names(names or ())
    overrides, trouble = asyncio.run(_overrides(settings))
    effective, in_force, problems = settings.with_valid(overrides)
    if problems:
        trouble = "\n  ".join(("Overrides in Redis are ignored, as all workers do:", *problems))
    values = _of_process(settings)
    for name in names or FAMILIES:
        values += _values(effective, name, in_force)
    if as_json:
        write_line(json.dumps({"values": [asdict(value) for value in values]}))
    else:
        table = Table("dependency", "variable", "value", "source")
        for value in values:
            is_same = value.source == value.variable
            source = "itself" if is_same else value.source
            cells = (value.dependency, value.variable, value.value, source)
            table.add_row(*map(cell, cells))
        console().print(table)
    if trouble:
        typer.echo(trouble, err=True)
        raise typer.Exit(Exit.NO_REDIS)


def _of_process(settings: Settings) -> list[_Value]:
    rows = []
    for variable_name, name in PROCESS_VARIABLES.items():
        value = getattr(settings, name)
        source = variable_name if name in settings.explicitly_set else "default"
        text = "set, and not shown" if isinstance(value, SecretStr) else shown(value)
        rows.append(_Value("", name, variable_name, text, source))
    return rows


def _values(settings: Settings, name: str, overrides: frozenset[str]) -> list[_Value]:
    policy, sources = settings.policy_for(name), settings.sources_for(name)
    rows = []
    for part, kind in PARTS.items():
        for field in kind.__dataclass_fields__:
            source = sources.get((part, field), "default")
            if source in overrides:
                source = f"override in Redis of {source}"
            value = shown(getattr(getattr(policy, part), field))
            named = variable(section_of(name), part, field)
            rows.append(_Value(name, f"{part}.{field}", named, value, source))
    return rows


async def _overrides(settings: Settings) -> tuple[dict[str, str], str]:
    """The overrides in Redis, and a sentence if they cannot be read."""
    if settings.redis_url is None:
        return {}, ""
    try:
        async with open_cluster(settings) as cluster:
            known = await cluster.overrides()
        return {name: override.value for name, override in known.valid.items()}, ""
    except REDIS_FAILURES as error:
        trouble = trouble_with_redis(settings, error)
        return {}, f"Redis cannot be used, so its overrides are not known: {trouble}"
