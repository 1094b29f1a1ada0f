"""Commands that look at the configuration: ``doctor`` and ``config``."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.markup import escape
from rich.table import Table

from lightrag_resilience.config.policies import FAMILIES, PARTS, Policy
from lightrag_resilience.config.process_environment import surroundings
from lightrag_resilience.config.settings import Settings, lightrag_timeouts
from lightrag_resilience.config.tokenizer_cache import PRELOAD, is_missing_from
from lightrag_resilience.config.variables import PLAIN, PREFIX, section_of, variable
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.redis_client.health_check import check_up
from lightrag_resilience.shared_state.operator_control import (
    REDIS_FAILURES,
    cluster_of,
    trouble_with_redis,
)
from lightrag_resilience.text import MET, counted, printable

from .code_checks import CodeError, examine_code
from .exit_codes import Exit, check_names, console, fail, settings_or_exit, tell
from .policy_checks import Finding, Level, examine
from .process_checks import examine_process

__all__ = ["COMMANDS"]

_DOWNLOADS = "LightRAG will download its tokenizer's table at its next start, as it is not here."
_Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
_Names = Annotated[list[str] | None, typer.Argument(help="Dependencies, such as llm.openai.")]


def doctor(
    names: _Names = None,
    *,
    as_json: _Json = False,
    strict: Annotated[bool, typer.Option(help="Warnings are trouble, too.")] = False,
    code: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Import it, and look for retries around retries."),
    ] = None,
) -> None:
    """Check the RESILIENCE_* variables, Redis and what calls meet.

    Of dependencies that are named it shows the policies.

    Ends with 0 if all is well, 1 if not, 2 if a variable is wrong, 3 if Redis cannot be used.
    """
    settings = settings_or_exit()
    chosen = names or list(FAMILIES)
    check_names(chosen)
    timeouts = lightrag_timeouts()
    found = [
        finding for name in chosen for finding in examine(name, settings.policy_for(name), timeouts)
    ]
    around = surroundings()
    found += examine_process(settings, around)
    if (journal := settings.shutdown_journal) and (problem := Journal(journal).problem()):
        found.append(Finding(Level.ERROR, "shutdown", problem, "set SHUTDOWN_JOURNAL to a file"))
    for module in code or ():
        found += _look_at_code(module)
    is_away = False
    if settings.redis_url is not None:
        of_redis, is_away = asyncio.run(_look_at_redis(settings))
        found += of_redis
    if as_json:
        tell(json.dumps({"findings": [asdict(finding) for finding in found]}))
    else:
        page = console()
        page.print(_counted(found))
        for finding in found:
            page.print(
                printable(f"{finding.level}: {finding.subject}: {finding.problem}. ")
                + f"To do: {finding.advice}.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if is_missing_from(around.tokenizer_folder):  # no trouble where there is internet
            page.print(f"note: tokenizer: {_DOWNLOADS} {PRELOAD}.", soft_wrap=True, highlight=False)
        if names:
            page.print(_policies(settings, names))
        else:
            page.print("`lightrag-resilience config` shows every value.", highlight=False)
    raise typer.Exit(Exit.NO_REDIS if is_away else _verdict(found, strict=strict))


def _look_at_code(module: str) -> list[Finding]:
    try:
        return examine_code(module)
    except CodeError as error:
        fail(str(error))


def _counted(found: list[Finding]) -> str:
    """What there is to read below, before all of it."""
    if not found:
        return "Nothing was found that is wrong."
    levels = Counter(finding.level for finding in found)
    return " and ".join(counted(levels[level], level) for level in Level if levels[level]) + ":"


def _verdict(found: list[Finding], *, strict: bool) -> Exit:
    bad = {Level.ERROR, Level.WARNING} if strict else {Level.ERROR}
    return Exit.TROUBLE if any(finding.level in bad for finding in found) else Exit.FINE


async def _look_at_redis(settings: Settings) -> tuple[list[Finding], bool]:
    assert settings.redis_url is not None  # noqa: S101 - who calls this has looked
    client = make_client(settings.redis_url.get_secret_value())
    of_calls: list[Finding] = []
    try:
        remarks = await check_up(client, settings.redis_prefix)
        if not any(is_bad for is_bad, *_ in remarks):
            of_calls = await _look_at_dependencies(settings)
    except REDIS_FAILURES as error:
        problem = f"it cannot be used: {trouble_with_redis(settings, error)}"
        advice = "check RESILIENCE_REDIS_URL; until then each process has breakers of its own"
        return [Finding(Level.ERROR, "redis", problem, advice)], True
    finally:
        await client.aclose()
    return [
        *of_calls,
        *(
            Finding(Level.ERROR if is_bad else Level.WARNING, "redis", problem, advice)
            for is_bad, problem, advice in remarks
        ),
    ], False


async def _look_at_dependencies(settings: Settings) -> list[Finding]:
    """What their callers meet now, by what all workers report.

    A circuit that is open does what it is there for; what no circuit refuses, or no waiting mends,
    wants a person.
    """
    async with cluster_of(settings) as cluster:
        seen = await cluster.look()
    return [
        Finding(
            Level.ERROR if health.look == "failing" or MET in health.sentence else Level.WARNING,
            name,
            health.sentence.removeprefix(f"{name} "),
            health.advice or "look at its own status page or log",
        )
        for name, health in seen.health.items()
        if not health.is_well
    ]


def _policies(settings: Settings, names: list[str]) -> Table:
    """Each field of the policies; what a variable changed is marked."""
    table = Table("variable", *map(_cell, names), title="Policies in force (* set by a variable)")
    for part, kind in PARTS.items():
        table.add_section()
        for name in kind.__dataclass_fields__:
            cells = []
            for dependency in names:
                value = getattr(getattr(settings.policy_for(dependency), part), name)
                default = getattr(getattr(Policy.for_name(dependency), part), name)
                shown = _cell(_shown(value))
                cells.append(shown if value == default else f"[bold]{shown} *[/]")
            table.add_row(f"…__{part.upper()}__{name.upper()}", *cells)
    return table


def _cell(text: str) -> str:
    return escape(printable(text))


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


# ---------------------------------------------------------------------- where values come from


@dataclass(frozen=True, slots=True)
class _Value:
    dependency: str
    field: str
    variable: str
    value: str
    source: str


def config(names: _Names = None, *, as_json: _Json = False) -> None:
    """Print every value in force, and where it comes from: default, a variable, or Redis."""
    settings = settings_or_exit()
    check_names(names or ())
    overrides, trouble = asyncio.run(_overrides(settings))
    effective, in_force, problems = settings.with_valid(overrides)
    if problems:
        trouble = "\n  ".join(("Overrides in Redis are ignored, as all workers do:", *problems))
    values = _plain(settings)
    for name in names or FAMILIES:
        values += _values(effective, name, in_force)
    if as_json:
        tell(json.dumps({"values": [asdict(value) for value in values]}))
    else:
        table = Table("dependency", "variable", "value", "source")
        for value in values:
            is_same = value.source == value.variable
            source = "itself" if is_same else value.source
            cells = (value.dependency, value.variable, value.value, source)
            table.add_row(*map(_cell, cells))
        console().print(table)
    if trouble:
        typer.echo(trouble, err=True)
        raise typer.Exit(Exit.NO_REDIS)


def _plain(settings: Settings) -> list[_Value]:
    """What belongs to no dependency."""
    rows = []
    for plain in PLAIN:
        name = plain.name.removeprefix(PREFIX).lower()
        value = getattr(settings, name)
        is_secret = isinstance(value, SecretStr)
        source = plain.name if name in settings.given else "default"
        shown = "set, and not shown" if is_secret else _shown(value)
        rows.append(_Value("", name, plain.name, shown, source))
    return rows


def _values(settings: Settings, name: str, overrides: frozenset[str]) -> list[_Value]:
    policy, sources = settings.policy_for(name), settings.sources_for(name)
    rows = []
    for part, kind in PARTS.items():
        for field in kind.__dataclass_fields__:
            source = sources.get((part, field), "default")
            if source in overrides:
                source = f"override in Redis of {source}"
            value = _shown(getattr(getattr(policy, part), field))
            named = variable(section_of(name), part, field)
            rows.append(_Value(name, f"{part}.{field}", named, value, source))
    return rows


async def _overrides(settings: Settings) -> tuple[dict[str, str], str]:
    """What `set` set, and what is wrong where that cannot be known."""
    if settings.redis_url is None:
        return {}, ""
    try:
        async with cluster_of(settings) as cluster:
            known = await cluster.overrides()
        return {name: override.value for name, override in known.valid.items()}, ""
    except REDIS_FAILURES as error:
        trouble = trouble_with_redis(settings, error)
        return {}, f"Redis cannot be used, so its overrides are not known: {trouble}"


COMMANDS = {"doctor": doctor, "config": config}
