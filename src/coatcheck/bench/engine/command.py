"""``coatcheck bench engine``: the command line. Measuring itself is imported by the command, not for ``--help``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from coatcheck.bench.engine.config import BenchConfig
from coatcheck.bench.support.files import check_writable, write_json
from coatcheck.engine.command import (
    ChunkTokens,
    Device,
    EncodePatches,
    KvTokens,
    MaxRunning,
    Model,
    Pixels,
    Runner,
    StepMs,
    Tp,
)
from coatcheck.engine.model.config import DEFAULT_MODEL, EngineConfig
from coatcheck.engine.strategies.table import NAMES, canonical
from coatcheck.errors import ConfigError
from coatcheck.process import quiet_libraries

if TYPE_CHECKING:
    from coatcheck.bench.engine.result import Report

REQUESTS = 64


def engine(
    strategies: Annotated[str, typer.Option(help="Names or aliases with commas between, or all.")] = "all",
    tp: Tp = 2,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.")] = 16,
    requests: Annotated[
        int | None,
        typer.Option(help="Of each strategy in a round.  [default: 64, or the concurrency if more]"),
    ] = None,
    image: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of each image.  [default: 448x448]")] = None,
    images_per_request: Annotated[int | None, typer.Option(help="0: text alone.  [default: 1]")] = None,
    video: Annotated[str, typer.Option(help="A file, or 'made': a clip of 2 MB; in place of images.")] = "",
    text_tokens: Annotated[int, typer.Option(help="Tokens of text in a prompt, with --input tensors.")] = 16,
    output_tokens: Annotated[int, typer.Option(help="Tokens generated for each request.")] = 16,
    input: Annotated[str, typer.Option(help="http: a whole server; tensors: prebuilt, to bare ranks.")] = "http",
    runner: Runner = "model",
    step_ms: StepMs = 0.0,
    pixels: Pixels = "uint8",
    arena_mib: Annotated[int, typer.Option(help="Shared memory for payloads.")] = 1024,
    rounds: Annotated[int, typer.Option(help="Rounds; strategies take turns in each.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the workload.")] = 0,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    max_running: MaxRunning = EngineConfig.max_running,
    kv_tokens: KvTokens = EngineConfig.kv_tokens,
    chunk_tokens: ChunkTokens = EngineConfig.chunk_tokens,
    encode_patches: EncodePatches = EngineConfig.encode_patches,
    json: Annotated[Path | None, typer.Option(help="Write everything there, samples too (.gz: compressed).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots there.")] = None,
) -> None:
    """Compare strategies in one engine: the same seeded workload for each, interleaved in rounds.

    Exit status 1 if a request failed or strategies consumed different inputs.
    """
    if video and (image, images_per_request) != (None, None):
        raise ConfigError("--video: not with --image or --images-per-request; each request has one video and no image")
    config = BenchConfig(
        strategies=_strategies(strategies),
        model=model.absolute(),
        tp=tp,
        concurrency=concurrency,
        requests=max(REQUESTS, concurrency) if requests is None else requests,
        image=image or BenchConfig.image,
        images_per_request=images_per_request if images_per_request is not None else 0 if video else 1,
        video=video,
        text_tokens=text_tokens,
        output_tokens=output_tokens,
        input=input,
        pixels=pixels,  # type: ignore[arg-type]  # checked there
        arena_mib=arena_mib,
        rounds=rounds,
        seed=seed,
        engine=EngineConfig(
            model=model.absolute(),
            device=device,
            max_running=max_running,
            kv_tokens=kv_tokens,
            chunk_tokens=chunk_tokens,
            encode_patches=encode_patches,
            embedding_cache_bytes=0,  # strategies ask about the same pictures, and each is to pay for them
            runner=runner,
            step_ms=step_ms,
        ),
    )
    check_writable(json, html)
    try:  # all of it before minutes of measuring
        from coatcheck.bench.engine.page import write_html
        from coatcheck.bench.engine.table import table

        report = _measure(config)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; measuring needs: pip install 'coatcheck[bench]'") from error
    Console().print(table(report))
    if json is not None:
        write_json(report, json)
    if html is not None:
        write_html(report, html)
    problems = _problems(report)
    for problem in problems:
        typer.echo(problem, err=True)
    raise typer.Exit(1 if problems else 0)


def _strategies(text: str) -> tuple[str, ...]:
    if text == "all":
        return tuple(NAMES)
    return tuple(dict.fromkeys(canonical(name.strip(), "--strategies") for name in text.split(",")))


def _measure(config: BenchConfig) -> Report:
    quiet_libraries()
    from coatcheck.bench.engine.measure import measure
    from coatcheck.bench.engine.start import starter

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        return asyncio.run(measure(config, starter(config), _Bar(bar)))


class _Bar:
    """The progress bar, as :class:`coatcheck.bench.engine.measure.Progress`."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def phase(self, text: str, requests: int) -> None:
        self._bar.reset(self._task, total=requests, description=text)

    def done(self) -> None:
        self._bar.advance(self._task)


def _problems(report: Report) -> list[str]:
    """What makes the figures no fair comparison."""
    found = [
        f"{run.strategy}: {count} requests failed: {reason}"
        for run in report.runs
        for reason, count in run.failures.items()
    ]
    inputs = {run.strategy: run.inputs_sha256 for run in report.runs}
    if len(set(inputs.values())) != 1 or "" in inputs.values():
        found.append(f"the strategies' inputs differ or could not be verified: {inputs}")
    tokens = {run.strategy: run.tokens_sha256 for run in report.runs}
    if report.options["engine"]["runner"] == "null" and (len(set(tokens.values())) != 1 or "" in tokens.values()):
        found.append(f"the strategies' tokens differ: {tokens}")
    return found
