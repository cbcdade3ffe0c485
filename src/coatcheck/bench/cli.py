"""``coatcheck bench``: the command line."""

from __future__ import annotations

import typer

from coatcheck.bench.engine.command import engine
from coatcheck.bench.serve.command import serve

app = typer.Typer(no_args_is_help=True, help="Measurements, as table, JSON and HTML.")
app.command()(engine)
app.command()(serve)


@app.callback()
def common() -> None:
    """Measurements, as table, JSON and HTML."""
