"""How a command ends: its exit code, and one line that says why."""

from __future__ import annotations

import enum
from typing import NoReturn

import typer

from .errors import SettingsError
from .settings import Settings, load_settings

__all__ = ["Exit", "fail", "settings_or_exit"]


class Exit(enum.IntEnum):
    """What a script can tell from the end of a command."""

    FINE = 0
    TROUBLE = 1
    """A breaker is not closed, or work was given up."""
    USAGE = 2
    """An argument or a variable is wrong."""
    NO_REDIS = 3
    """Redis cannot be used, so that each process has breakers of its own."""


def fail(message: str, code: Exit = Exit.USAGE) -> NoReturn:
    """End with a message."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def settings_or_exit() -> Settings:
    """What the variables say; where some are wrong, end with all that is."""
    try:
        return load_settings()
    except SettingsError as error:
        fail(str(error))
