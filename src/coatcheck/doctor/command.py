"""``coatcheck doctor``: the command line."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coatcheck import __version__
from coatcheck.errors import ConfigError
from coatcheck.findings import Finding
from coatcheck.integrations.sglang import settings, sizing

SCHEMA = 1  # of the JSON
STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}
WANTED = ("sglang",)


class Report(msgspec.Struct, frozen=True):
    """What ``--json`` prints."""

    schema: int
    coatcheck: str
    python: str
    prefix: str  # the environment that was looked at
    works: bool  # nothing failed
    findings: list[Finding]


def doctor(
    wanted: Annotated[
        str, typer.Option("--for", help="What has to work: sglang. Without it, what is not installed is no failure.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Look at what is installed here and say what will work. Starts no server.

    Exit status 1 if something failed: it is installed or asked for, and cannot work.
    """
    if wanted and wanted not in WANTED:
        raise ConfigError(f"--for: {wanted!r} is not one of {', '.join(WANTED)}")
    with Console(stderr=True).status("looking; SGLang takes seconds to import"):
        findings = look(wanted == "sglang")
    works = all(finding.status != "failed" for finding in findings)
    if json:
        report = Report(SCHEMA, __version__, platform.python_version(), sys.prefix, works, findings)
        typer.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        Console().print(table(findings))
    raise typer.Exit(0 if works else 1)


def look(sglang: bool) -> list[Finding]:
    """All checks, in the order in which they are shown; ``sglang``: it has to work."""
    from coatcheck.doctor.machine import machine
    from coatcheck.doctor.sglang import sglang_plugin

    try:
        arena_bytes = settings.read(os.environ).arena_bytes
    except ConfigError:  # a finding of its own
        arena_bytes = None
    return [*machine(sizing.LEAST if arena_bytes is None else arena_bytes), *sglang_plugin(os.environ, sglang)]


def table(findings: list[Finding]) -> Table:
    """For a terminal of 80 columns or more."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "looked at", "found", "what it means"):
        made.add_column(name, overflow="fold", no_wrap=name == "")
    for finding in findings:
        status = Text(finding.status, style=STYLES[finding.status])
        made.add_row(status, Text(finding.what), Text(finding.found), Text(finding.means))
    return made
