"""``coatcheck bench serve``: the command line."""

from __future__ import annotations

import asyncio
import re
import signal
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from coatcheck.bench.serve.config import Load, root_of
from coatcheck.bench.support.files import check_writable, read_json, write_json
from coatcheck.errors import ConfigError
from coatcheck.process import quiet_libraries

if TYPE_CHECKING:
    from coatcheck.bench.serve.result import Report, Run


def serve(
    url: Annotated[str, typer.Option(help="Of the server, such as http://127.0.0.1:8000.")] = "",
    compare: Annotated[str, typer.Option(help="NAME=URL,NAME=URL: several, in interleaved rounds.")] = "",
    rounds: Annotated[int, typer.Option(help="Windows on each server.")] = 3,
    clients: Annotated[int, typer.Option(help="Image requests under way at once.")] = Load.clients,
    images: Annotated[int | None, typer.Option(help="Pictures per request; 0: text alone.  [default: 1]")] = None,
    image: Annotated[str, typer.Option(help="Pixels of each: SIDE or WIDTHxHEIGHT.")] = str(Load.side),
    format: Annotated[str, typer.Option(help="jpeg or png.")] = Load.image_format,
    directory: Annotated[Path | None, typer.Option(help="Take the pictures of this directory, in turn.")] = None,
    video: Annotated[str, typer.Option(help="A file, or 'made': clips of 2 MB, none twice; no pictures then.")] = "",
    output_tokens: Annotated[int, typer.Option(help="Asked for in each image request.")] = Load.output_tokens,
    text_streams: Annotated[int, typer.Option(help="Long text answers beside.")] = Load.text_streams,
    probe: Annotated[float, typer.Option(help="Seconds between small text requests; 0: none.")] = Load.probe_s,
    health: Annotated[float, typer.Option(help="Seconds between GET /health; 0: none.")] = Load.health_s,
    ramp: Annotated[float, typer.Option(help="Seconds before a window, which do not count.")] = Load.ramp_s,
    window: Annotated[float, typer.Option(help="Seconds that count.")] = Load.window_s,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request has failed.")] = Load.timeout_s,
    model: Annotated[str, typer.Option(help="Its name there.  [default: the first of /v1/models]")] = "",
    seed: Annotated[int, typer.Option(help="Of what pictures look like; which they are is new every time.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the report there, for --against.")] = None,
    against: Annotated[Path | None, typer.Option(help="Compare with a report that --save wrote.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything there, samples too (.gz: compressed).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots there.")] = None,
) -> None:
    """Put a load of image requests on any OpenAI-compatible server; what its users and their neighbours see.

    A server that wants a key gets the one in the environment's COATCHECK_API_KEY. Exit status 1 if a request failed.
    """
    width, height = _size(image)
    load = Load(
        clients=clients,
        images=(0 if video else 1) if images is None else images,
        side=max(width, height),
        image_format=format,
        video=video,
        directory=directory,
        output_tokens=output_tokens,
        text_streams=text_streams,
        probe_s=probe,
        health_s=health,
        ramp_s=ramp,
        window_s=window,
        seed=seed,
        timeout_s=timeout,
        model=model,
        width=0 if width == height else width,
        height=0 if width == height else height,
    )
    if rounds < 1:
        raise ConfigError(f"--rounds: {rounds} is less than 1")
    servers = _servers(url, compare)
    check_writable(save, json, html)
    quiet_libraries()
    try:
        from coatcheck.bench.serve.page import summary, write_html
        from coatcheck.bench.serve.result import Report
        from coatcheck.bench.serve.rows import notes, problems, servers_of
        from coatcheck.bench.serve.table import table

        saved = [] if against is None else _same_load(against, read_json(against, Report), load)
        report = _measure(servers, load, rounds)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; measuring needs: pip install 'coatcheck[bench]'") from error
    if against is not None:
        report.options["against"] = str(against)
    console = Console()
    console.print(summary(report), highlight=False)
    console.print(table(servers_of(report.runs, saved)))
    for path in (save, json):
        if path is not None:
            write_json(report, path)
    if html is not None:
        write_html(report, html, saved)
    for note in notes(report.runs):
        typer.echo(f"note: {note}", err=True)
    failed = problems(report.runs)
    for problem in failed:
        typer.echo(problem, err=True)
    raise typer.Exit(1 if failed else 0)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if found is None:
        raise ConfigError(f"--image: {text!r} is not SIDE or WIDTHxHEIGHT in pixels, such as 1024 or 1920x1080")
    return int(found[1]), int(found[2] or found[1])


def _servers(url: str, compare: str) -> dict[str, str]:
    """URLs by name."""
    if bool(url) == bool(compare):
        raise ConfigError("--url, --compare: one of them, --url URL or --compare NAME=URL,NAME=URL")
    if url:
        return {"server": root_of(url)}
    found: dict[str, str] = {}
    for part in compare.split(","):
        name, equals, where = part.strip().partition("=")
        if not (name and equals and where) or name in found:
            raise ConfigError(f"--compare: {part.strip()!r} is not NAME=URL with a name of its own")
        found[name] = root_of(where)
    return found


def _same_load(path: Path, report: Report, load: Load) -> list[Run]:
    """The saved runs. Raises ConfigError where they are of another load."""
    mine = load.as_json()
    names = [field.name for field in fields(Load) if field.name not in ("seed", "model", "timeout_s")]
    other = [
        f"{name} {report.options.get(name)}, now {mine[name]}"
        for name in names
        if report.options.get(name) != mine[name]
    ]
    if other:
        raise ConfigError(f"--against: {path} is of another load: {'; '.join(other)}")
    if not report.runs:
        raise ConfigError(f"--against: {path} has no run")
    return report.runs


def _measure(servers: dict[str, str], load: Load, rounds: int) -> Report:
    from coatcheck.bench.serve.rounds import compare

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended in either case
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[ended]}"), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        return asyncio.run(compare(servers, load, rounds, _Bar(bars)))


class _Bar:
    """The progress bar, as :class:`coatcheck.bench.serve.measure.Progress`."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("starting", total=None, ended="")

    def phase(self, text: str, seconds: float) -> None:
        """See there."""
        self._bars.reset(self._task, total=seconds or None, description=text, ended="")

    def passed(self, seconds: float, ended: int) -> None:
        """See there."""
        if ended:
            self._bars.update(self._task, completed=seconds, ended=f"{ended} requests")
