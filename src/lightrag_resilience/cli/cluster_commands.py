"""Commands for who is on call: what is broken, and what to do about it, in all workers at once."""

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
from lightrag_resilience.config.policies import FAMILIES
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.config.variables import DEFAULT, PREFIX, section_of
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

from .exit_codes import Exit, check_names, console, fail, settings_or_exit, tell
from .options import Json
from .rendering import as_page

__all__ = ["COMMANDS"]

R = TypeVar("R")
_SHORTEST = 0.1  # seconds between two looks of `watch`
_HEARD = 4  # seconds until all workers have seen a change


def _duration(text: str) -> float:
    try:
        return as_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _interval(text: object) -> float:
    seconds = _duration(str(text))  # also asked about the default
    if seconds < _SHORTEST:
        raise typer.BadParameter(f"{text!r} is less than {_SHORTEST:g} s")
    return seconds


_Name = Annotated[str, typer.Argument(help="A breaker, such as llm.openai.")]
_Reason = Annotated[str, typer.Option(help="Why, for those who wonder.")]
_New = Annotated[bool, typer.Option("--new", help="Also where no worker has reported it yet.")]


def status(*, as_json: Json = False) -> None:
    """Show every breaker of the cluster. Ends with 0 if all is well, 1 if not, 3 without Redis.

    Well is what a caller would find well: all are closed, and calls do not fail besides.

    Listed are breakers that were used in the last ten minutes, or are not closed.
    """
    settings = settings_or_exit()
    seen = _with_cluster(settings, lambda cluster: cluster.fetch())
    if as_json:
        tell(json.dumps(to_json(seen)))
    else:
        page = console()
        page.print(as_page(seen, page.width))
    raise typer.Exit(Exit.FINE if seen.is_well else Exit.TROUBLE)


def watch(
    *,
    every: Annotated[
        float, typer.Option(parser=_interval, metavar="2s", help="Time between two looks.")
    ] = 1.0,
    times: Annotated[int, typer.Option(help="Looks until the end; 0: until Ctrl-C.", min=0)] = 0,
) -> None:
    """Show every breaker of the cluster, again and again, until Ctrl-C."""
    settings = settings_or_exit()
    _check_address(settings)
    try:
        page = console()
        with Live(console=page, auto_refresh=False) as live:
            count = 0
            while not times or count < times:
                count += 1
                live.update(_page_or_trouble(settings, page.width), refresh=True)
                time.sleep(every if count != times else 0)
        if not page.is_terminal:
            page.print()  # the line's end, which Live leaves out there
    except KeyboardInterrupt:
        raise typer.Exit(Exit.FINE) from None


def open_(name: _Name, *, reason: _Reason = "", new: _New = False) -> None:
    """Open a breaker in all workers for as long as its policy says; probes follow as usual."""
    _steer(name, State.OPEN, reason, new=new)


def close(name: _Name, *, reason: _Reason = "", new: _New = False) -> None:
    """Close a breaker in all workers, and forget what led here. Ends an isolation, too."""
    _steer(name, State.CLOSED, reason, new=new)


def isolate(
    name: _Name,
    *,
    seconds: Annotated[
        float, typer.Option("--for", parser=_duration, metavar="10m", help="How long, up to 7d.")
    ],
    reason: _Reason = "",
    new: _New = False,
) -> None:
    """Keep a breaker open in all workers for a time, with no probes; `close` ends it early."""
    _steer(name, State.OPEN, reason, new=new, open_for=seconds)


def reset(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else only say what it does.")] = False,
) -> None:
    """Close every breaker of the cluster, and forget what led here."""
    settings = settings_or_exit()
    reason = _signed("")

    async def close_all(cluster: ClusterView) -> list[str]:
        names = list((await cluster.fetch()).breakers)
        for name in names if yes else ():
            await cluster.force_state(name, State.CLOSED, reason)
        return names

    names = _with_cluster(settings, close_all)
    if not yes:
        fail(f"This closes {counted(len(names), 'breaker')} in all workers; add --yes to do it")
    tell(f"Closed in all workers: {', '.join(names) or 'none was there'}")


def set_(
    variables: Annotated[
        list[str], typer.Argument(help="RESILIENCE_LLM__LIMIT__RPM=60 ...", metavar="NAME=VALUE")
    ],
    *,
    reason: _Reason = "",
    new: Annotated[
        bool, typer.Option("--new", help="Also for a dependency that no worker has reported yet.")
    ] = False,
) -> None:
    """Give variables of policies other values in all workers, with no restart, until `unset`."""
    settings = settings_or_exit()
    pairs = dict(_pair(text) for text in variables)
    why = _signed(reason)

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
        tell(f"{name} is {value} in all workers, within {_HEARD} s")


def unset(
    variables: Annotated[list[str], typer.Argument(help="RESILIENCE_LLM__LIMIT__RPM ...")],
) -> None:
    """Give variables the values of each worker's environment again."""
    settings = settings_or_exit()

    async def restore(cluster: ClusterView) -> list[str]:
        stored = await cluster.overrides()
        # What `set` did not write is removed as it is spelt there.
        names = [text if text in stored.odd else text.strip().upper() for text in variables]
        known = [*stored.valid, *stored.odd]
        if not set(names) <= set(known):
            fail(f"Only what `set` set can be unset. Set: {', '.join(known) or 'none'}")
        for name in names:
            await cluster.override(name, None)
        return names

    for name in _with_cluster(settings, restore):
        tell(f"{name} is as each worker's environment says, within {_HEARD} s")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        fail(f"{text!r} is no NAME=VALUE")
    name = name.strip().upper()
    if not name.startswith(PREFIX):
        name = printable(name)
        fail(f"{name} is no variable of a policy: did you mean {PREFIX}{name}?")
    return name, value.strip()


def _check_dependencies(names: Iterable[str], settings: Settings, breakers: Iterable[str]) -> None:
    """Let a slip of the pen change nothing: it would be confirmed, and hold for no dependency."""
    known = {DEFAULT, *map(str.upper, FAMILIES), *settings.overrides_by_section}
    for breaker in breakers:
        parts = breaker.split(".")
        known |= {section_of(".".join(parts[:end])) for end in range(1, len(parts) + 1)}
    for name in names:
        if name.removeprefix(PREFIX).partition("__")[0] not in known:
            fail(
                f"{name}: no worker has reported such a dependency in the last ten minutes. "
                f"Known: {', '.join(sorted(known))}. Add --new to set it all the same"
            )


def acl(
    *, user: Annotated[str, typer.Option(help="The user's name.")] = "lightrag-resilience"
) -> None:
    """Print the Redis command that makes a user with no more rights than are needed."""
    settings = settings_or_exit()
    if not re.fullmatch("[!-~]+", user):
        fail(f"{user!r} is no name of a user: take ASCII characters without spaces")
    tell(f"ACL SETUSER {user} on >PASSWORD {needed_rights(settings.redis_prefix)}")


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

# ---------------------------------------------------------------------- talking to the cluster


def _check_address(settings: Settings) -> None:
    if settings.redis_url is None:
        fail(
            "RESILIENCE_REDIS_URL is not set, so each process has breakers of its own, "
            "which its own status page and log show. Where a file has the variable, say "
            "lightrag-resilience --env-file .env, with that file"
        )


def _with_cluster(settings: Settings, work: Callable[[ClusterView], Awaitable[R]]) -> R:
    """Do something with the cluster, or end with what is wrong with Redis."""
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


def _steer(
    name: str, state: State, reason: str, *, new: bool, open_for: float | None = None
) -> None:
    settings = settings_or_exit()
    if new:  # others are as some worker has reported them
        check_names([name])
    why = _signed(reason, isolates=open_for is not None)
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
            f"Known: {', '.join(error.known) or 'none'}. Add --new to go on all the same"
        )
    until = f" for {as_words(done.now.remaining)}" if done.now.remaining else ""
    tell(f"{name} is {done.now.state.value} in all workers{until}: {done.now.reason}")


def _signed(reason: str, *, isolates: bool = False) -> str:
    """The reason as all workers show it, with who gave it."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        who = "somebody"
    return with_author(reason, f"{who} on {socket.gethostname()}", isolates=isolates)


def _page_or_trouble(settings: Settings, width: int) -> Group:
    try:
        return as_page(asyncio.run(_connected(settings, lambda cluster: cluster.fetch())), width)
    except REDIS_FAILURES as error:
        trouble = trouble_with_redis(settings, error)
        text = f"Redis cannot be used: {trouble}. Each process has its own breakers."
        return Group(Text(text, "bold red"))
