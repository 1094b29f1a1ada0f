"""The command ``doctor``: what is wrong with the configuration, Redis and current calls."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lightrag_resilience.config.policies import FAMILIES, LIGHTRAG_TIMEOUTS, PARTS, Policy
from lightrag_resilience.config.process_environment import read_process_environment
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.config.tokenizer_cache import PRELOAD, is_missing_from
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.redis_client.health_check import check_redis
from lightrag_resilience.shared_state.operator_control import (
    REDIS_FAILURES,
    open_cluster,
    trouble_with_redis,
)
from lightrag_resilience.text import MET, counted, printable

from .code_checks import CodeError, examine_code
from .exit_codes import Exit, check_names, console, fail, settings_or_exit, write_line
from .options import Json, Names, cell, shown
from .policy_checks import Finding, Level, examine
from .process_checks import examine_process

if TYPE_CHECKING:
    from lightrag_resilience.integrations.lightrag.coverage import Seam

__all__ = ["doctor"]

_DOWNLOADS = "LightRAG will download its tokenizer's table at its next start, as it is not here."


def doctor(
    names: Names = None,
    *,
    as_json: Json = False,
    strict: Annotated[bool, typer.Option(help="Treat warnings as errors.")] = False,
    code: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Import it, and search for retries around retries."),
    ] = None,
    lightrag: Annotated[
        bool, typer.Option("--lightrag", help="List what of the installed LightRAG is guarded.")
    ] = False,
) -> None:
    """Check the RESILIENCE_* variables, Redis, and how calls end now.

    Shows the policies of the dependencies that are named.

    Exit code: 0 all is well, 1 not, 2 a variable is wrong, 3 Redis cannot be used.
    """
    settings = settings_or_exit()
    chosen = names or list(FAMILIES)
    check_names(chosen)
    timeouts = {**LIGHTRAG_TIMEOUTS, **settings.given_timeouts}
    found = [
        finding for name in chosen for finding in examine(name, settings.policy_for(name), timeouts)
    ]
    environment = read_process_environment()
    found += examine_process(settings, environment)
    if (journal := settings.shutdown_journal) and (problem := Journal(journal).problem()):
        found.append(Finding(Level.ERROR, "shutdown", problem, "set SHUTDOWN_JOURNAL to a file"))
    for module in code or ():
        found += _examine_code(module)
    seams: list[Seam] = []
    if lightrag:
        seams, of_lightrag = _examine_lightrag(settings)
        found += of_lightrag
    is_unavailable = False
    if settings.redis_url is not None:
        of_redis, is_unavailable = asyncio.run(_examine_redis(settings))
        found += of_redis
    if as_json:
        shown_seams = {"seams": [asdict(seam) for seam in seams]} if lightrag else {}
        write_line(json.dumps({"findings": [asdict(finding) for finding in found], **shown_seams}))
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
        if is_missing_from(environment.tokenizer_folder):
            page.print(f"note: tokenizer: {_DOWNLOADS} {PRELOAD}.", soft_wrap=True, highlight=False)
        if lightrag:
            page.print(_seams(seams))
        if names:
            page.print(_policies(settings, names))
        else:
            page.print("`lightrag-resilience config` shows every value.", highlight=False)
    raise typer.Exit(Exit.NO_REDIS if is_unavailable else _verdict(found, strict=strict))


def _examine_code(module: str) -> list[Finding]:
    try:
        return examine_code(module)
    except CodeError as error:
        fail(str(error))


def _examine_lightrag(settings: Settings) -> tuple[list[Seam], list[Finding]]:
    try:
        from .lightrag_checks import examine_lightrag  # noqa: PLC0415 - imports LightRAG
    except ModuleNotFoundError as error:
        fail(str(error))
    return examine_lightrag(strict=settings.strict)


def _seams(seams: list[Seam]) -> Table:
    from .lightrag_checks import LIGHTRAG  # noqa: PLC0415 - imports LightRAG

    table = Table("seam", "cover", "why", title=LIGHTRAG)
    for seam in seams:
        table.add_row(*map(cell, (seam.name, seam.cover, seam.reason)))
    return table


def _counted(found: list[Finding]) -> str:
    """How many findings of each level follow."""
    if not found:
        return "Nothing was found that is wrong."
    levels = Counter(finding.level for finding in found)
    return " and ".join(counted(levels[level], level) for level in Level if levels[level]) + ":"


def _verdict(found: list[Finding], *, strict: bool) -> Exit:
    bad = {Level.ERROR, Level.WARNING} if strict else {Level.ERROR}
    return Exit.TROUBLE if any(finding.level in bad for finding in found) else Exit.FINE


async def _examine_redis(settings: Settings) -> tuple[list[Finding], bool]:
    assert settings.redis_url is not None  # noqa: S101 - doctor() has checked it
    client = make_client(settings.redis_url.get_secret_value())
    of_calls: list[Finding] = []
    try:
        remarks = await check_redis(client, settings.redis_prefix)
        if not any(is_bad for is_bad, *_ in remarks):
            of_calls = await _examine_dependencies(settings)
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


async def _examine_dependencies(settings: Settings) -> list[Finding]:
    """A finding for each dependency that is not well, as all workers report it.

    An open circuit is only a warning: it does its job. An error is what it cannot help with:
    failures that it does not reject, and causes that time does not mend, such as a wrong key.
    """
    async with open_cluster(settings) as cluster:
        seen = await cluster.fetch()
    return [
        Finding(
            Level.ERROR
            if health.condition == "failing" or MET in health.sentence
            else Level.WARNING,
            name,
            health.sentence.removeprefix(f"{name} "),
            health.advice or "check its own status page or log",
        )
        for name, health in seen.health.items()
        if not health.is_well
    ]


def _policies(settings: Settings, names: list[str]) -> Table:
    """Every field of the policies, with a mark on what a variable changed."""
    table = Table("variable", *map(cell, names), title="Policies in force (* set by a variable)")
    for part, kind in PARTS.items():
        table.add_section()
        for name in kind.__dataclass_fields__:
            cells = []
            for dependency in names:
                value = getattr(getattr(settings.policy_for(dependency), part), name)
                default = getattr(getattr(Policy.for_name(dependency), part), name)
                text = cell(shown(value))
                cells.append(text if value == default else f"[bold]{text} *[/]")
            table.add_row(f"…__{part.upper()}__{name.upper()}", *cells)
    return table
