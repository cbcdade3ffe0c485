"""The figures for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from coatcheck.bench.serve.rows import Server, rows

TITLE = "Median of rounds [smallest–largest]"


def table(servers: Sequence[Server]) -> Table:
    """A column per server, and one of ratios after each but the first."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=Text(TITLE), title_justify="left")
    made.add_column("", no_wrap=True)
    for at, server in enumerate(servers):
        made.add_column(Text(server.name), justify="right")
        if at:
            made.add_column(Text(f"to {servers[0].name}"), justify="right", style="bold")
    for label, cells in rows(servers):
        shown = []
        for at, cell in enumerate(cells):
            shown += [Text(cell.value), *([Text(cell.ratio)] if at else [])]
        made.add_row(label, *shown)
    return made
