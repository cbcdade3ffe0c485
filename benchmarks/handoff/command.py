"""``python -m benchmarks.handoff``: the command line."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.handoff.config import HandoffConfig, numbers
from benchmarks.handoff.contenders import ALL
from coatcheck.bench.support.files import check_writable, write_json
from coatcheck.errors import ConfigError
from coatcheck.process import quiet_libraries

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def handoff(
    contenders: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "all",
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, with commas between.")] = "2,4",
    sizes: Annotated[str, typer.Option(help="MB of float32 pixels, with commas between.")] = "1,5.8,25,100",
    rounds: Annotated[int, typer.Option(help="Rounds; contenders take turns in each.")] = 9,
    repeats: Annotated[int, typer.Option(help="Hand-offs of a size in one turn, one at a time.")] = 2,
    burst: Annotated[int, typer.Option(help="Hand-offs of a size in one turn, queued.")] = 4,
    peers: Annotated[Path, typer.Option(help="Where 'make peers' has put the peers' environments.")] = Path(".peers"),
    json: Annotated[Path | None, typer.Option(help="Write everything there, samples too (.gz: compressed).")] = None,
) -> None:
    """Hand pixels from a front end to all ranks, by coatcheck and by the peers' own code, interleaved in rounds.

    A contender that is not installed or fails is listed with its reason. Exit status 1 if one of ours did.
    """
    counts = numbers(ranks, "--ranks")
    if any(count != int(count) for count in counts):
        raise ConfigError(f"--ranks: {ranks!r} is not whole numbers with commas between")
    config = HandoffConfig(
        contenders=ALL if contenders == "all" else tuple(dict.fromkeys(contenders.split(","))),
        ranks=tuple(map(int, counts)),
        sizes=numbers(sizes, "--sizes"),
        rounds=rounds,
        repeats=repeats,
        burst=burst,
        peers=peers,
    )
    check_writable(json)
    quiet_libraries()
    try:
        from benchmarks.handoff.rounds import measure
        from benchmarks.handoff.table import tables
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; measuring needs: make .venv/installed") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended in either case
    console = Console()
    with Console(stderr=True).status("starting") as status:
        report = measure(config, status.update)
    for table in tables(report):
        console.print(table)
    if json is not None:
        write_json(report, json)
    failed = dict.fromkeys((run.contender, run.ranks, run.failed) for run in report.runs if run.failed)
    for name, count, reason in failed:
        typer.echo(f"{name}, {count} ranks: {reason}", err=True)
    raise typer.Exit(1 if any(name.startswith("coatcheck") for name, _, _ in failed) else 0)
