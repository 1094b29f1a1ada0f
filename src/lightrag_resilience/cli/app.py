"""The command line: ``lightrag-resilience``, with all its commands."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from lightrag_resilience.runtime.extras import install

try:
    import typer
    from rich.table import Table
except ModuleNotFoundError as error:  # pragma: no cover - tests/test_wheel.py runs it apart
    sys.exit(f"The command line needs {error.name}: {install('cli')}")

from lightrag_resilience._version import __version__
from lightrag_resilience.config.process_environment import load_env_file
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.errors import ResilienceError, SettingsError
from lightrag_resilience.text import counted

from .cluster_commands import COMMANDS
from .config_command import config
from .doctor import doctor
from .exit_codes import (
    Exit,
    console,
    fail,
    replace_unencodable_output,
    settings_or_exit,
    write_line,
)
from .options import Json, cell
from .simulate import simulate

__all__ = ["app", "main"]

_NAMED = 10  # damaged lines of a journal that are listed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the ``lightrag-resilience`` command."""
    replace_unencodable_output()
    try:
        app()
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EIO, errno.EBADF}:
            raise
        typer.echo(f"The output cannot be written: {error.strerror}", err=True)
        sys.exit(Exit.USAGE)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's way of calling it
    if wanted:
        write_line(f"lightrag-resilience {__version__}")
        raise typer.Exit


def _load_env_file(file: Path | None) -> Path | None:
    if file is not None:
        try:
            load_env_file(file)
        except OSError as error:
            fail(f"{file} cannot be read: {error.strerror or error}")
        except SettingsError as error:
            fail(str(error))
    return file


@app.callback()
def _about(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    env_file: Annotated[
        Path | None,
        typer.Option(
            callback=_load_env_file,
            help="File that sets missing variables, such as .env.",
        ),
    ] = None,
) -> None:
    """Circuit breakers, retries, limits and timeouts for LightRAG."""
    del version  # its callback has printed it
    command = context.invoked_subcommand
    if command in {"doctor", "config"} and env_file is None and Path(".env").is_file():
        typer.echo(
            "note: `serve` reads the .env of this folder, and this command has not: "
            f"lightrag-resilience --env-file .env {command}",
            err=True,
        )


@app.command()
def demo(
    *,
    seed: Annotated[int, typer.Option(help="The same seed fails the same calls.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for the results and the chart.")] = Path(
        "demo-output"
    ),
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Processes that share a breaker; 0 skips this part.")
    ] = 4,
    quick: Annotated[bool, typer.Option(help="A smaller demo, in about 40 s.")] = False,
    as_json: Json = False,
) -> None:
    """Run LightRAG alone and a protected one through brownouts and outages, in about 80 s."""
    try:
        from lightrag_resilience.demo.experiments import FULL, QUICK  # noqa: PLC0415
        from lightrag_resilience.demo.run import run_demo  # noqa: PLC0415
    except ModuleNotFoundError as error:
        fail(f"The demo needs {error.name}: {install('demo')}")
    settings_or_exit()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"The output folder cannot be created: {error}")
    scale = QUICK if quick else FULL
    report = run_demo(
        seed=seed,
        scale=scale,
        workers=workers,
        output=output,
        quiet=as_json,
        console=console(),
    )
    if as_json:
        write_line(json.dumps(report))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def serve(
    context: typer.Context,
    *,
    gunicorn: Annotated[bool, typer.Option("--gunicorn", help="Run under Gunicorn.")] = False,
) -> None:
    """Run LightRAG's own server, protected.

    Other options are those of lightrag-server.
    """
    if {"-h", "--help"} & {*context.args}:
        write_line(f"{context.get_help()}\n\nOptions of LightRAG's own server:\n")
    elif (variables := Path(".env")).is_file():
        _load_env_file(variables)  # as LightRAG does, but with a clear error if unreadable
    try:
        from lightrag_resilience.integrations.lightrag.server import serve as run  # noqa: PLC0415

        run(context.args, gunicorn=gunicorn)
    except ModuleNotFoundError as error:  # also a module that LightRAG's server imports
        fail(f"The server needs {error.name}: {install('server')}")
    except ResilienceError as error:
        fail(str(error))


@app.command()
def journal(
    path: Annotated[
        Path | None, typer.Argument(help="Journal file; RESILIENCE_SHUTDOWN_JOURNAL by default.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """List the work that shutdowns abandoned.

    Exit code: 0 none, 1 some, 2 the journal cannot be read, or not all of it.
    """
    location = path or settings_or_exit().shutdown_journal
    if location is None:
        fail("There is no journal: set RESILIENCE_SHUTDOWN_JOURNAL, or name the file")
    damage: list[tuple[Path, int]] = []
    try:
        stored = Journal(location)
        if path is not None and not stored.exists:
            fail(f"There is no journal {path}")
        records = list(stored.read(lambda *line: damage.append(line)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        fail(f"The journal {location} cannot be read: {reason}")
    if as_json:
        write_line(json.dumps([asdict(record) for record in records]))
    else:
        table = Table("when", "what", "about", "kind", "state", "after", "signal", "process")
        for each in records:
            when = datetime.fromtimestamp(each.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            process, lasted = f"{each.pid} on {each.host}", f"{each.seconds:.1f} s"
            about = " ".join(filter(None, (each.workspace, each.document, each.track)))
            kind = each.kind if each.effect == "unknown" else f"{each.kind}, {each.effect}"
            state = each.state if each.attempt == 1 else f"{each.state}, attempt {each.attempt}"
            cells = (when, each.name, about, kind, state, lasted, each.signal, process)
            table.add_row(*map(cell, cells))
        if records or not damage:
            console().print(table if records else "No work was abandoned.")
    if damage:
        lines = ", ".join(f"line {number} of {file}" for file, number in damage[:_NAMED])
        fail(f"{counted(len(damage), 'record')} cannot be read: {lines}")
    if records:
        raise typer.Exit(Exit.TROUBLE)


app.command()(doctor)
app.command()(config)
app.command()(simulate)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
