"""Commands for the person on call: show and change breakers and settings of all workers."""

from __future__ import annotations

import asyncio
import getpass
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, TypeVar

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.dependency_names import DEFAULT, sections_for
from lightrag_resilience.config.policies import FAMILIES
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.config.variables import PREFIX
from lightrag_resilience.errors import SettingsError
from lightrag_resilience.redis_client.client import needed_rights
from lightrag_resilience.shared_state.cluster_view import ClusterView, to_json
from lightrag_resilience.shared_state.messages import Override
from lightrag_resilience.shared_state.operator_control import (
    REDIS_FAILURES,
    UnknownBreakerError,
    force_known_breaker,
    open_cluster,
    trouble_with_redis,
    with_author,
)
from lightrag_resilience.text import as_duration, as_words, counted, printable

from .exit_codes import Exit, check_names, console, fail, settings_or_exit, write_line
from .options import Json
from .rendering import as_page

__all__ = ["COMMANDS"]

R = TypeVar("R")
_MIN_INTERVAL = 0.1  # seconds between two updates of `watch`
_APPLIED_WITHIN = 4  # seconds until all workers have applied a change


def _duration(text: str) -> float:
    try:
        return as_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _interval(text: object) -> float:
    seconds = _duration(str(text))  # typer parses the default too
    if seconds < _MIN_INTERVAL:
        raise typer.BadParameter(f"{text!r} is less than {_MIN_INTERVAL:g} s")
    return seconds


_Name = Annotated[str, typer.Argument(help="Name of a breaker, such as llm.openai.")]
_Reason = Annotated[str, typer.Option(help="Reason, shown to all.")]
_New = Annotated[bool, typer.Option("--new", help="Also if no worker has reported it yet.")]


def status(*, as_json: Json = False) -> None:
    """Show all breakers of the cluster.

    Lists breakers that were used in the last ten minutes, or are not closed.

    Exit code: 0 all are closed and calls succeed, 1 not all, 3 Redis cannot be used.
    """
    settings = settings_or_exit()
    seen = _with_cluster(settings, lambda cluster: cluster.fetch())
    if as_json:
        write_line(json.dumps(to_json(seen)))
    else:
        page = console()
        page.print(as_page(seen, page.width))
    raise typer.Exit(Exit.FINE if seen.is_well else Exit.TROUBLE)


def watch(
    *,
    every: Annotated[
        float, typer.Option(parser=_interval, metavar="2s", help="Time between two updates.")
    ] = 1.0,
    times: Annotated[int, typer.Option(help="Number of updates; 0: until Ctrl-C.", min=0)] = 0,
) -> None:
    """Show all breakers of the cluster and update them until Ctrl-C."""
    settings = settings_or_exit()
    _check_address(settings)
    try:
        page = console()
        with Live(console=page, auto_refresh=False) as live:
            count = 0
            while not times or count < times:
                count += 1
                live.update(_page_or_problem(settings, page.width), refresh=True)
                time.sleep(every if count != times else 0)
        if not page.is_terminal:
            page.print()  # the last newline, which Live omits there
    except KeyboardInterrupt:
        raise typer.Exit(Exit.FINE) from None


def open_(name: _Name, *, reason: _Reason = "", new: _New = False) -> None:
    """Open a breaker in all workers.

    It stays open for as long as its policy says; then probes follow.
    """
    _force_state(name, State.OPEN, reason, new=new)


def close(name: _Name, *, reason: _Reason = "", new: _New = False) -> None:
    """Close a breaker in all workers and clear its window. Also ends an isolation."""
    _force_state(name, State.CLOSED, reason, new=new)


def isolate(
    name: _Name,
    *,
    seconds: Annotated[
        float, typer.Option("--for", parser=_duration, metavar="10m", help="How long, up to 7d.")
    ],
    reason: _Reason = "",
    new: _New = False,
) -> None:
    """Keep a breaker open in all workers for a given time.

    No probes are sent. `close` ends it early.
    """
    _force_state(name, State.OPEN, reason, new=new, open_for=seconds)


def reset(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only report.")] = False,
) -> None:
    """Close all breakers of the cluster and clear their windows."""
    settings = settings_or_exit()
    reason = _with_author("")

    async def close_all(cluster: ClusterView) -> list[str]:
        names = list((await cluster.fetch()).breakers)
        for name in names if yes else ():
            await cluster.force_state(name, State.CLOSED, reason)
        return names

    names = _with_cluster(settings, close_all)
    if not yes:
        fail(f"This closes {counted(len(names), 'breaker')} in all workers; add --yes to do it")
    write_line(f"Closed in all workers: {', '.join(names) or 'none'}")


def set_(
    variables: Annotated[
        list[str], typer.Argument(help="RESILIENCE_LLM__LIMIT__RPM=60 ...", metavar="NAME=VALUE")
    ],
    *,
    reason: _Reason = "",
    new: Annotated[
        bool, typer.Option("--new", help="Also if no worker has reported the dependency yet.")
    ] = False,
) -> None:
    """Override policy variables in all workers until `unset`.

    No restart is needed.
    """
    settings = settings_or_exit()
    pairs = dict(_pair(text) for text in variables)
    why = _with_author(reason)

    async def override(cluster: ClusterView) -> None:
        stored = {name: it.value for name, it in (await cluster.overrides()).valid.items()}
        settings.with_valid(stored)[0].with_overrides(pairs)
        if not new:
            _check_dependencies(pairs, settings, (await cluster.discover()).breakers)
        for name, value in pairs.items():
            await cluster.override(name, Override(value, why))

    try:
        _with_cluster(settings, override)
    except SettingsError as error:
        fail(str(error))
    for name, value in pairs.items():
        write_line(f"{name} is {value} in all workers, within {_APPLIED_WITHIN} s")


def unset(
    variables: Annotated[list[str], typer.Argument(help="RESILIENCE_LLM__LIMIT__RPM ...")],
) -> None:
    """Remove overrides of policy variables.

    They get the values of each worker's environment again.
    """
    settings = settings_or_exit()

    async def restore(cluster: ClusterView) -> list[str]:
        stored = await cluster.overrides()
        # Entries that `set` did not write may be spelt in any way.
        names = [text if text in stored.odd else text.strip().upper() for text in variables]
        known = [*stored.valid, *stored.odd]
        if not set(names) <= set(known):
            overridden = ", ".join(known) or "none"
            fail(f"Only variables that `set` has overridden can be unset. Overridden: {overridden}")
        for name in names:
            await cluster.override(name, None)
        return names

    for name in _with_cluster(settings, restore):
        write_line(f"{name} has the value of each worker's environment, within {_APPLIED_WITHIN} s")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        fail(f"{text!r} is not NAME=VALUE")
    name = name.strip().upper()
    if not name.startswith(PREFIX):
        name = printable(name)
        fail(f"{name} is not a policy variable: did you mean {PREFIX}{name}?")
    return name, value.strip()


def _check_dependencies(names: Iterable[str], settings: Settings, breakers: Iterable[str]) -> None:
    """Reject misspelt dependencies: an override of one would be confirmed and have no effect."""
    known = {DEFAULT, *map(str.upper, FAMILIES), *settings.overrides_by_section}
    for breaker in breakers:
        known.update(sections_for(breaker))
    for name in names:
        if name.removeprefix(PREFIX).partition("__")[0] not in known:
            fail(
                f"{name}: no worker has reported such a dependency in the last ten minutes. "
                f"Known: {', '.join(sorted(known))}. Add --new to set it anyway"
            )


def acl(
    *, user: Annotated[str, typer.Option(help="The user's name.")] = "lightrag-resilience"
) -> None:
    """Print the Redis command that creates a user with minimal rights."""
    settings = settings_or_exit()
    if not re.fullmatch("[!-~]+", user):
        fail(f"{user!r} is not a user name: use ASCII characters without spaces")
    write_line(f"ACL SETUSER {user} on >PASSWORD {needed_rights(settings.redis_prefix)}")


COMMANDS: dict[str, Callable[..., None]] = {
    "status": status,
    "watch": watch,
    "open": open_,
    "close": close,
    "isolate": isolate,
    "reset": reset,
    "set": set_,
    "unset": unset,
    "acl": acl,
}

# ---------------------------------------------------------------------- helpers


def _check_address(settings: Settings) -> None:
    if settings.redis_url is None:
        fail(
            "RESILIENCE_REDIS_URL is not set, so each process has breakers of its own, "
            "which its own status page and log show. If a file has the variable, run "
            "lightrag-resilience --env-file .env with that file"
        )


def _with_cluster(settings: Settings, work: Callable[[ClusterView], Awaitable[R]]) -> R:
    """Run `work` on the cluster, or exit with what is wrong with Redis."""
    try:
        return asyncio.run(_connected(settings, work))
    except REDIS_FAILURES as error:
        trouble = trouble_with_redis(settings, error)
        fail(
            f"Redis cannot be used ({trouble}), so each process has breakers of its own until it "
            "can",
            Exit.NO_REDIS,
        )


async def _connected(settings: Settings, work: Callable[[ClusterView], Awaitable[R]]) -> R:
    _check_address(settings)
    async with open_cluster(settings) as cluster:
        return await work(cluster)


def _force_state(
    name: str, state: State, reason: str, *, new: bool, open_for: float | None = None
) -> None:
    settings = settings_or_exit()
    if new:  # reported names are valid
        check_names([name])
    why = _with_author(reason, isolates=open_for is not None)
    try:
        done = _with_cluster(
            settings,
            lambda cluster: force_known_breaker(
                cluster, name, state, why, open_for=open_for, new=new
            ),
        )
    except UnknownBreakerError as error:
        fail(
            f"No worker has reported a breaker {name!r} in the last ten minutes. "
            f"Known: {', '.join(error.known) or 'none'}. Add --new to do it anyway"
        )
    until = f" for {as_words(done.now.remaining)}" if done.now.remaining else ""
    write_line(f"{name} is {done.now.state.value} in all workers{until}: {done.now.reason}")


def _with_author(reason: str, *, isolates: bool = False) -> str:
    """The reason with its author, as all workers show it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown user"
    return with_author(reason, f"{user} on {socket.gethostname()}", isolates=isolates)


def _page_or_problem(settings: Settings, width: int) -> Group:
    try:
        return as_page(asyncio.run(_connected(settings, lambda cluster: cluster.fetch())), width)
    except REDIS_FAILURES as error:
        trouble = trouble_with_redis(settings, error)
        text = f"Redis cannot be used: {trouble}. Each process has its own breakers."
        return Group(Text(text, "bold red"))
