"""What a command writes, and how it ends: its exit code, and one line that says why."""

from __future__ import annotations

import codecs
import contextlib
import enum
import io
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import NoReturn

import typer
from rich.console import Console

from lightrag_resilience.config.dependency_names import check_name
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.errors import PolicyError, SettingsError
from lightrag_resilience.text import printable

__all__ = [
    "Exit",
    "check_names",
    "console",
    "fail",
    "settings_or_exit",
    "tell",
    "write_what_can_be_shown",
]


class Exit(enum.IntEnum):
    """What a script can tell from the end of a command."""

    FINE = 0
    TROUBLE = 1
    """A breaker is not closed, or work was given up."""
    USAGE = 2
    """An argument or a variable is wrong."""
    NO_REDIS = 3
    """Redis cannot be used, so that each process has breakers of its own."""
    UNREAD = 141
    """The reader of the output is gone, such as ``head``; a shell says the same of SIGPIPE."""


_WIDTH = 80  # columns of a terminal that has none
_NO_EDGE = 4096  # characters


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        _end_unread()


def console() -> Console:
    """Where tables and sentences of a command go; but in a terminal nothing is cut off."""
    if not sys.stdout.isatty():
        return _Console(width=_NO_EDGE)
    made = _Console()
    return made if made.width > 0 else _Console(width=_WIDTH)  # COLUMNS=0 says nothing


def tell(text: str) -> None:
    """Write a line of a command's output."""
    try:
        print(_lines(text), flush=True)  # noqa: T201 - it is what a command is for
    except BrokenPipeError:
        _end_unread()


def _lines(text: str) -> str:
    """Without what steers a terminal; a name may come from anywhere."""
    return "\n".join(map(printable, text.split("\n")))


def _end_unread() -> NoReturn:
    with contextlib.suppress(OSError, ValueError):  # what is left in the buffer has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(Exit.UNREAD)


def write_what_can_be_shown() -> None:
    """Let no output fail for want of a character: ``…`` is ``...`` where there are none but ASCII.

    A name may hold what no encoding has, such as half of a surrogate pair.
    """
    codecs.register_error(_PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)


_PLAIN = "lightrag_resilience.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - it is asked for output alone
    text = unicodedata.normalize("NFKD", error.object[error.start : error.end])
    return "".join(each if each.isascii() else "?" for each in text), error.end


def fail(message: str, code: Exit = Exit.USAGE) -> NoReturn:
    """End with a message."""
    typer.echo(_lines(message), err=True)
    raise typer.Exit(code)


def check_names(names: Iterable[str]) -> None:
    """End with what is wrong with the first name that no dependency can have."""
    for name in names:
        try:
            check_name(name)
        except PolicyError as error:
            fail(str(error))


def settings_or_exit() -> Settings:
    """What the variables say; where some are wrong, end with all that is."""
    try:
        return load_settings()
    except SettingsError as error:
        fail(str(error))
