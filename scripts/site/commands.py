"""The page of the command line, from the commands themselves."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from lightrag_resilience.cli.app import app

__all__ = ["commands_page"]

_PROGRAM = "lightrag-resilience"
_HEAD = f"""# Command line

Every command of `{_PROGRAM}`, as its `--help` shows it. [For operators](operators.md) says when to
use which. Exit codes: 0 all is well, 1 a breaker or its calls are not, 2 wrong arguments or
variables, 3 Redis cannot be used, 130 Ctrl-C, 141 the reader of the output ended.
"""


def commands_page() -> str:
    """The page as Markdown."""
    group: Any = typer.main.get_command(app)  # typer brings a click of its own
    context = typer.Context(group, info_name=_PROGRAM)
    parts = [_HEAD, *_options(group, context)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            parts += _command(command, typer.Context(command, info_name=name, parent=context))
    return "\n".join(parts)


def _command(command: Any, context: typer.Context) -> Iterator[str]:
    yield f"## {context.info_name}\n"
    usage = " ".join((_PROGRAM, context.info_name or "", *command.collect_usage_pieces(context)))
    yield f"```text\n{usage}\n```\n"
    yield re.sub(r"[\b\f]\n?", "", (command.help or "").strip()) + "\n"
    yield from _options(command, context)


def _options(command: Any, context: typer.Context) -> Iterator[str]:
    records = (each.get_help_record(context) for each in command.get_params(context))
    rows = [record for record in records if record is not None]
    if rows:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{names}` | {_cell(meaning)} |" for names, meaning in rows)
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
