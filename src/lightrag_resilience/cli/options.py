"""Options that several commands share, and the text of table cells."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from lightrag_resilience.text import printable

__all__ = ["Json", "Names", "cell", "shown"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Names = Annotated[list[str] | None, typer.Argument(help="Dependencies, such as llm.openai.")]


def cell(text: str) -> str:
    """Text of a table cell, without markup and control characters."""
    return escape(printable(text))


def shown(value: object) -> str:
    """Text of a setting's value."""
    return "none" if value is None else str(value)
