"""Options and arguments that several commands have, and values as their tables show them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from lightrag_resilience.text import printable

__all__ = ["Json", "Names", "cell", "shown"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Names = Annotated[list[str] | None, typer.Argument(help="Dependencies, such as llm.openai.")]


def cell(text: str) -> str:
    """A text for a table, without markup and control characters."""
    return escape(printable(text))


def shown(value: object) -> str:
    """The value of a setting."""
    return "none" if value is None else str(value)
