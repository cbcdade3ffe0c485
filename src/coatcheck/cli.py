"""The console script ``coatcheck``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from coatcheck import __version__
from coatcheck.bench.cli import app as bench
from coatcheck.doctor.command import doctor
from coatcheck.engine.command import rank, serve
from coatcheck.errors import CoatcheckError, ConfigError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")
app.command()(doctor)
errors = Console(stderr=True, highlight=False)


@app.callback(invoke_without_command=True)
def common(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """The input path of tensor-parallel multimodal serving, done right."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.command()(serve)
app.command()(rank)


def main() -> None:
    """Runs the command line; a user's mistake is one line on stderr and exit status 2."""
    try:
        app()
    except ConfigError as error:
        errors.print(f"[red]error:[/red] {error}", soft_wrap=True)
        sys.exit(2)
    except CoatcheckError as error:
        errors.print(f"[red]error:[/red] {error}", soft_wrap=True)
        sys.exit(1)
