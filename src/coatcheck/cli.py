"""The console script ``coatcheck``."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coatcheck import __version__
from coatcheck.bench.cli import app as bench
from coatcheck.doctor.command import doctor
from coatcheck.engine.config import ADMIN_TOKEN, ServeConfig
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.model.config import DEFAULT_MODEL, EngineConfig
from coatcheck.engine.options import (
    ChunkTokens,
    Device,
    Dtype,
    EmbeddingCacheMib,
    EncodePatches,
    KvTokens,
    MaxRunning,
    Model,
    Pixels,
    Runner,
    StepMs,
    Tp,
)
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.strategies.table import canonical
from coatcheck.errors import CoatcheckError, ConfigError
from coatcheck.intake.config import MEBI

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")
app.command()(doctor)
errors = Console(stderr=True, highlight=False)

ReadyTimeout = Annotated[
    float,
    typer.Option(help="Seconds from arrival (the lane's queue included) to every rank's report."),
]
Heartbeat = Annotated[float, typer.Option(help="Seconds between plans when there is nothing to do.")]
GroupTimeout = Annotated[float, typer.Option(help="Seconds after which a rank that hangs in a step counts as lost.")]
IntakeMib = Annotated[int, typer.Option(help="Payloads of requests not admitted yet that a rank holds at most.")]
AutoThresholdKib = Annotated[
    int | None,
    typer.Option(help="Payloads of a request up to this ride beside it under auto.  [default: measured at start]"),
]
AutoTiming = Annotated[
    str, typer.Option(help="Under auto: inline, background, or measured: by the load and costs measured at start.")
]
Trace = Annotated[str, typer.Option(help="Debug: directory for what each request cost on each rank, rankN.jsonl.")]
Verify = Annotated[bool, typer.Option("--verify", help="Debug: compare the inputs consumed on all ranks.")]


@app.callback(invoke_without_command=True)
def common(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """The input path of tensor-parallel multimodal serving, done right."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def serve(
    model: Model = DEFAULT_MODEL,
    model_name: Annotated[str, typer.Option(help="Name that clients give (default: the directory's).")] = "",
    tp: Tp = 2,
    strategy: Annotated[str, typer.Option(help="How pixels reach the ranks; see the README.")] = "auto",
    strategy_header: Annotated[
        bool, typer.Option("--strategy-header", help="Let a request's header X-Coatcheck-Strategy choose its strategy.")
    ] = False,
    admin_token: Annotated[
        str | None,
        typer.Option(
            envvar=ADMIN_TOKEN,
            help="Open /admin/strategy to whoever has this token. Better set the environment variable: "
            "everybody on the host can read command lines.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8000,
    workers: Annotated[int, typer.Option(help="Processes that decode and process images and videos.")] = 2,
    max_body_mib: Annotated[int, typer.Option(help="Largest request body.")] = 64,
    max_pixels: Annotated[int, typer.Option(help="Largest image or frame of a video, width x height.")] = 33_177_600,
    max_images: Annotated[int, typer.Option(help="Most images in a request.")] = 8,
    max_videos: Annotated[int, typer.Option(help="Most videos in a request.")] = 1,
    max_video_seconds: Annotated[float, typer.Option(help="Longest video.")] = 600.0,
    max_video_frames: Annotated[int, typer.Option(help="Most frames sampled of a video.")] = 768,
    max_waiting: Annotated[int, typer.Option(help="Most requests in the house before 503.")] = 256,
    allow_remote_images: Annotated[
        bool,
        typer.Option("--allow-remote-images", help="Fetch http(s) URLs of images and videos, public addresses only."),
    ] = False,
    pixels: Pixels = "uint8",
    arena_mib: Annotated[int, typer.Option(help="Shared memory for payloads, taken at start; 0: no handles.")] = 1024,
    arena_wait: Annotated[float, typer.Option(help="Seconds to wait for room in a full arena before 503.")] = 10.0,
    context: Annotated[int, typer.Option(help="Longest prompt and answer; 0: the model's own limit.")] = 0,
    request_timeout: Annotated[float, typer.Option(help="Seconds that a request may take in all.")] = 300.0,
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds that running requests get after SIGTERM.")] = 10.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_running: MaxRunning = 16,
    kv_tokens: KvTokens = 32_768,
    chunk_tokens: ChunkTokens = 512,
    encode_patches: EncodePatches = 4_096,
    embedding_cache_mib: EmbeddingCacheMib = 256,
    runner: Runner = "model",
    step_ms: StepMs = 0.0,
    ready_timeout: ReadyTimeout = 30.0,
    heartbeat: Heartbeat = 10.0,
    group_timeout: GroupTimeout = 120.0,
    intake_mib: IntakeMib = 1024,
    auto_threshold_kib: AutoThresholdKib = None,
    auto_timing: AutoTiming = "measured",
    verify: Verify = False,
    trace: Trace = "",
    external_ranks: Annotated[
        bool, typer.Option("--external-ranks", help="Do not start the ranks; print how torchrun does.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible API on a tensor-parallel group."""
    from coatcheck.engine.launcher.serve import run  # the front end's libraries are not needed for --help

    config = ServeConfig(
        frontend=FrontendConfig(
            model_dir=model.absolute(),
            model_name=model_name or ("coatcheck-default" if model == DEFAULT_MODEL else model.absolute().name),
            host=host,
            port=port,
            strategy=canonical(strategy),
            verify=verify,
            strategy_header=strategy_header,
            workers=workers,
            max_body_bytes=max_body_mib * MEBI,
            max_pixels=max_pixels,
            max_images=max_images,
            max_videos=max_videos,
            max_video_seconds=max_video_seconds,
            max_video_frames=max_video_frames,
            max_waiting=max_waiting,
            allow_remote_images=allow_remote_images,
            pixels=pixels,  # type: ignore[arg-type]  # checked there
            arena_bytes=arena_mib * MEBI,
            arena_wait_s=arena_wait,
            context=context or None,
            request_timeout_s=request_timeout,
            shutdown_timeout_s=shutdown_timeout,
        ),
        engine=EngineConfig(
            model=model.absolute(),
            device=device,
            dtype=dtype,
            max_running=max_running,
            kv_tokens=kv_tokens,
            chunk_tokens=chunk_tokens,
            encode_patches=encode_patches,
            embedding_cache_bytes=embedding_cache_mib * MEBI,
            runner=runner,
            step_ms=step_ms,
        ),
        ranks=RankConfig(
            ready_timeout_s=ready_timeout,
            heartbeat_s=heartbeat,
            group_timeout_s=group_timeout,
            intake_bytes=intake_mib * MEBI,
            auto_inside_bytes=None if auto_threshold_kib is None else auto_threshold_kib << 10,
            auto_timing=auto_timing,
            trace=str(Path(trace).absolute()) if trace else "",
        ),
        tp=tp,
        external_ranks=external_ranks,
        # The command line's parser takes an empty variable for none; a token that was lost on its way is a mistake.
        admin_token=os.environ.get(ADMIN_TOKEN) if admin_token is None else admin_token,
    )
    raise typer.Exit(asyncio.run(run(config)))


@app.command()
def rank(
    settings: Annotated[str, typer.Argument(help="The rank's settings, as serve --external-ranks prints them.")],
) -> None:
    """Run one rank, started by torchrun on the front end's host."""
    from coatcheck.engine.ranks.main import run
    from coatcheck.engine.ranks.settings import RankSettings

    run(RankSettings.decode(settings))


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
