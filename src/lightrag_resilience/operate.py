"""Commands for who is on call: what is broken, and what to do about it, in all workers at once."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from redis.exceptions import RedisError
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ._circuit import State
from ._pages import as_data, as_page
from ._terminal import Exit, fail, settings_or_exit
from ._words import as_duration, as_words, counted
from .errors import SettingsError
from .settings import Settings
from .shared.client import make_client, needed_rights
from .shared.overview import Cluster
from .shared.trouble import what_is_wrong
from .shared.wire import Description, Override, WireError

__all__ = ["COMMANDS"]

R = TypeVar("R")
_LONGEST_REASON = 120  # characters
_HEARD = 4  # seconds until all workers have seen a change
_REDIS = (RedisError, OSError, WireError)


def _duration(text: str) -> float:
    try:
        return as_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
_Name = Annotated[str, typer.Argument(help="A breaker, such as llm.openai.")]
_Reason = Annotated[str, typer.Option(help="Why, for those who wonder.")]
_New = Annotated[bool, typer.Option("--new", help="Also where no worker has reported it yet.")]


def status(*, as_json: _Json = False) -> None:
    """Show every breaker of the cluster. Ends with 0 if all are closed, 1 if not, 3 without Redis.

    Listed are breakers that were used in the last ten minutes, or are not closed.
    """
    settings = settings_or_exit()
    seen = _with_cluster(settings, lambda cluster: cluster.look())
    if as_json:
        typer.echo(json.dumps(as_data(seen)))
    else:
        Console().print(as_page(seen))
    raise typer.Exit(Exit.TROUBLE if seen.troubled else Exit.FINE)


def watch(
    *,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
    times: Annotated[int, typer.Option(help="Looks until the end; 0: until Ctrl-C.", min=0)] = 0,
) -> None:
    """Show every breaker of the cluster, again and again, until Ctrl-C."""
    settings = settings_or_exit()
    _address_of(settings)
    try:
        with Live(console=Console(), auto_refresh=False) as live:
            count = 0
            while not times or count < times:
                count += 1
                live.update(_page_or_trouble(settings), refresh=True)
                time.sleep(every if count != times else 0)
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

    async def close_all(cluster: Cluster) -> list[str]:
        names = list((await cluster.look()).breakers)
        for name in names if yes else ():
            await cluster.steer(name, State.CLOSED, reason)
        return names

    names = _with_cluster(settings, close_all)
    if not yes:
        fail(f"This closes {counted(len(names), 'breaker')} in all workers; add --yes to do it")
    typer.echo(f"Closed in all workers: {', '.join(names) or 'none was there'}")


def set_(
    variables: Annotated[
        list[str], typer.Argument(help="RESILIENCE_LLM__LIMIT__RPM=60 …", metavar="NAME=VALUE")
    ],
    *,
    reason: _Reason = "",
) -> None:
    """Give variables of policies other values in all workers, with no restart, until `unset`."""
    settings = settings_or_exit()
    pairs = dict(_pair(text) for text in variables)
    signed = _signed(reason)

    async def override(cluster: Cluster) -> None:
        known = {name: it.value for name, it in (await cluster.overrides()).items()}
        settings.with_overrides({**known, **pairs})
        for name, value in pairs.items():
            await cluster.override(name, Override(value, signed))

    try:
        _with_cluster(settings, override)
    except SettingsError as error:
        fail(str(error))
    for name, value in pairs.items():
        typer.echo(f"{name} is {value} in all workers, within {_HEARD} s")


def unset(
    variables: Annotated[list[str], typer.Argument(help="RESILIENCE_LLM__LIMIT__RPM …")],
) -> None:
    """Give variables the values of each worker's environment again."""
    settings = settings_or_exit()
    names = [name.strip().upper() for name in variables]

    async def restore(cluster: Cluster) -> list[str]:
        known = list(await cluster.overrides())
        if not set(names) <= set(known):
            return known or ["none"]
        for name in names:
            await cluster.override(name, None)
        return []

    if known := _with_cluster(settings, restore):
        fail(f"Only what `set` set can be unset. Set: {', '.join(known)}")
    for name in names:
        typer.echo(f"{name} is as each worker's environment says, within {_HEARD} s")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        fail(f"{text!r} is no NAME=VALUE")
    return name.strip().upper(), value.strip()


def acl(
    *, user: Annotated[str, typer.Option(help="The user's name.")] = "lightrag-resilience"
) -> None:
    """Print the Redis command that makes a user with no more rights than are needed."""
    settings = settings_or_exit()
    typer.echo(f"ACL SETUSER {user} on >PASSWORD {needed_rights(settings.redis_prefix)}")


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


def _address_of(settings: Settings) -> str:
    if settings.redis_url is None:
        fail(
            "RESILIENCE_REDIS_URL is not set, so each process has breakers of its own, "
            "which nobody else can see"
        )
    return settings.redis_url.get_secret_value()


def _with_cluster(settings: Settings, work: Callable[[Cluster], Awaitable[R]]) -> R:
    """Do something with the cluster, or end with what is wrong with Redis."""
    try:
        return asyncio.run(_connected(settings, work))
    except _REDIS as error:
        fail(
            f"Redis cannot be used ({what_is_wrong(error)}), so each process has breakers of its "
            "own until it can",
            Exit.NO_REDIS,
        )


async def _connected(settings: Settings, work: Callable[[Cluster], Awaitable[R]]) -> R:
    client = make_client(_address_of(settings))
    cluster = Cluster(client, settings.redis_prefix, lambda name: settings.policy_for(name).circuit)
    try:
        return await work(cluster)
    finally:
        await client.aclose()


def _steer(
    name: str, state: State, reason: str, *, new: bool, open_for: float | None = None
) -> None:
    settings = settings_or_exit()
    signed = _signed(reason)

    async def steer(cluster: Cluster) -> Description | list[str]:
        known = list((await cluster.look()).breakers)
        if name not in known and not new:
            return known
        return await cluster.steer(name, state, signed, open_for=open_for)

    done = _with_cluster(settings, steer)
    if isinstance(done, list):
        fail(
            f"No worker has reported a breaker {name!r} in the last ten minutes. "
            f"Known: {', '.join(done) or 'none'}. Add --new to go on all the same"
        )
    until = f" for {as_words(done.now.remaining)}" if done.now.remaining else ""
    typer.echo(f"{name} is {done.now.state.value} in all workers{until}: {done.now.reason}")


def _signed(reason: str) -> str:
    """The reason as all workers show it, with who gave it."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        who = "somebody"
    signed = f"by {who} on {socket.gethostname()}"
    clean = "".join(character for character in reason if character.isprintable())
    return f"{signed}: {clean[:_LONGEST_REASON]}" if clean else signed


def _page_or_trouble(settings: Settings) -> Group:
    try:
        return as_page(asyncio.run(_connected(settings, lambda cluster: cluster.look())))
    except _REDIS as error:
        text = f"Redis cannot be used: {what_is_wrong(error)}. Each process has its own breakers."
        return Group(Text(text, "bold red"))
