"""Output and exit codes of the commands."""

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
    "replace_unencodable_output",
    "settings_or_exit",
    "write_line",
]


class Exit(enum.IntEnum):
    """Exit codes for scripts."""

    FINE = 0
    TROUBLE = 1
    """A breaker is not closed, calls fail, or work was abandoned."""
    USAGE = 2
    """An argument or a variable is wrong."""
    NO_REDIS = 3
    """Redis cannot be used, so each process uses its own breakers."""
    UNREAD = 141
    """The reader of the output ended, such as ``head``; the shell's code for SIGPIPE."""


_WIDTH = 80  # columns of a terminal that reports none
_UNLIMITED = 4096  # columns outside a terminal: nothing wraps


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        _end_unread()


def console() -> Console:
    """The console for tables and sentences; outside a terminal nothing is cut off."""
    if not sys.stdout.isatty():
        return _Console(width=_UNLIMITED)
    made = _Console()
    return made if made.width > 0 else _Console(width=_WIDTH)  # COLUMNS=0


def write_line(text: str) -> None:
    """Write a line of output."""
    try:
        print(_printable_lines(text), flush=True)  # noqa: T201 - a command's output
    except BrokenPipeError:
        _end_unread()


def _printable_lines(text: str) -> str:
    """Remove control characters: a name may come from anywhere."""
    return "\n".join(map(printable, text.split("\n")))


def _end_unread() -> NoReturn:
    with contextlib.suppress(OSError, ValueError):  # discard what is still in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(Exit.UNREAD)


def replace_unencodable_output() -> None:
    """Replace characters that the terminal's encoding lacks, such as ``…`` by ``...`` in ASCII.

    Without that a name with half a surrogate pair would end the command.
    """
    codecs.register_error(_TO_ASCII, _to_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_TO_ASCII)


_TO_ASCII = "lightrag_resilience.to_ascii"


def _to_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - only output uses it
    text = unicodedata.normalize("NFKD", error.object[error.start : error.end])
    return "".join(each if each.isascii() else "?" for each in text), error.end


def fail(message: str, code: Exit = Exit.USAGE) -> NoReturn:
    """Print a message to stderr and exit."""
    typer.echo(_printable_lines(message), err=True)
    raise typer.Exit(code)


def check_names(names: Iterable[str]) -> None:
    """Exit at the first name that is not a valid dependency name."""
    for name in names:
        try:
            check_name(name)
        except PolicyError as error:
            fail(str(error))


def settings_or_exit() -> Settings:
    """Load the settings, or exit with all errors in the variables."""
    try:
        return load_settings()
    except SettingsError as error:
        fail(str(error))
