"""``coatcheck serve`` and ``coatcheck rank``: the engine's command line. Each default stands in its config."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from coatcheck.engine.config import ADMIN_TOKEN, ServeConfig
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.model.config import DEFAULT_MODEL, EngineConfig
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.strategies.table import canonical
from coatcheck.intake.limits import MEBI

# Of the model's side, as every command that starts an engine takes them.
Tp = Annotated[int, typer.Option(help="Ranks of the tensor-parallel group.")]
Model = Annotated[Path, typer.Option(help="Directory of a Qwen2.5-VL checkpoint (default: coatcheck-default-model's).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
MaxRunning = Annotated[int, typer.Option(help="Requests that run at once.")]
KvTokens = Annotated[int, typer.Option(help="KV cache in tokens; a request reserves prompt + max_tokens.")]
ChunkTokens = Annotated[int, typer.Option(help="Tokens computed per step.")]
EncodePatches = Annotated[int, typer.Option(help="Patches encoded per step (at least one item).")]
Runner = Annotated[str, typer.Option(help="model, or null: no forward pass, to measure the input path alone.")]
StepMs = Annotated[float, typer.Option(help="Milliseconds that the null runner's step sleeps.")]
EmbeddingCacheMib = Annotated[
    int, typer.Option(help="Vision embeddings that each rank keeps, on the model's device; 0: none.")
]
Pixels = Annotated[str, typer.Option(help="Payloads by handle: uint8 (compact) or float32 (as the others carry).")]

# Of the front end and its workers.
ModelName = Annotated[str, typer.Option(help="Name that clients give (default: the directory's).")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")]
MaxBodyMib = Annotated[int, typer.Option(help="Largest request body.")]
MaxImages = Annotated[int, typer.Option(help="Most images in a request.")]
MaxVideos = Annotated[int, typer.Option(help="Most videos in a request.")]
MaxVideoSeconds = Annotated[float, typer.Option(help="Longest video.")]
Context = Annotated[int, typer.Option(help="Longest prompt and answer; 0: the model's own limit.")]

# Of the ranks.
ReadyTimeout = Annotated[
    float,
    typer.Option(help="Seconds from arrival (the lane's queue included) to every rank's report."),
]
Heartbeat = Annotated[float, typer.Option(help="Seconds between plans when there is nothing to do.")]
GroupTimeout = Annotated[float, typer.Option(help="Seconds after which a rank that hangs in a step counts as lost.")]
WaitingPayloadMib = Annotated[
    int, typer.Option(help="Payloads of requests not admitted yet that a rank holds at most.")
]
AutoThresholdKib = Annotated[
    int | None,
    typer.Option(help="Payloads of a request up to this ride beside it under auto.  [default: measured at start]"),
]
AutoTiming = Annotated[
    str, typer.Option(help="Under auto: inline, background, or measured: by the load and costs measured at start.")
]
Trace = Annotated[str, typer.Option(help="Debug: directory for what each request cost on each rank, rankN.jsonl.")]
Verify = Annotated[bool, typer.Option("--verify", help="Debug: compare the inputs consumed on all ranks.")]


def serve(
    model: Model = DEFAULT_MODEL,
    model_name: ModelName = "",
    tp: Tp = ServeConfig.tp,
    strategy: Annotated[
        str, typer.Option(help="How pixels reach the ranks; see the README.")
    ] = FrontendConfig.strategy,
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
    host: Annotated[str, typer.Option(help="Address to listen on.")] = FrontendConfig.host,
    port: Port = FrontendConfig.port,
    workers: Annotated[
        int, typer.Option(help="Processes that decode and process images and videos.")
    ] = FrontendConfig.workers,
    max_body_mib: MaxBodyMib = FrontendConfig.max_body_bytes // MEBI,
    max_pixels: Annotated[
        int, typer.Option(help="Largest image or frame of a video, width x height.")
    ] = FrontendConfig.max_pixels,
    max_images: MaxImages = FrontendConfig.max_images,
    max_videos: MaxVideos = FrontendConfig.max_videos,
    max_video_seconds: MaxVideoSeconds = FrontendConfig.max_video_seconds,
    max_video_frames: Annotated[
        int, typer.Option(help="Most frames sampled of a video.")
    ] = FrontendConfig.max_video_frames,
    max_waiting: Annotated[int, typer.Option(help="Most requests in flight before 503.")] = FrontendConfig.max_waiting,
    allow_remote_images: Annotated[
        bool,
        typer.Option("--allow-remote-images", help="Fetch http(s) URLs of images and videos, public addresses only."),
    ] = False,
    pixels: Pixels = FrontendConfig.pixels,
    arena_mib: Annotated[
        int, typer.Option(help="Shared memory for payloads, taken at start; 0: no handles.")
    ] = FrontendConfig.arena_bytes // MEBI,
    arena_wait: Annotated[
        float, typer.Option(help="Seconds to wait for room in a full arena before 503.")
    ] = FrontendConfig.arena_wait_s,
    context: Context = 0,
    request_timeout: Annotated[
        float, typer.Option(help="Seconds that a request may take in all.")
    ] = FrontendConfig.request_timeout_s,
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds that running requests get after SIGTERM.")
    ] = FrontendConfig.shutdown_timeout_s,
    device: Device = EngineConfig.device,
    dtype: Dtype = EngineConfig.dtype,
    max_running: MaxRunning = EngineConfig.max_running,
    kv_tokens: KvTokens = EngineConfig.kv_tokens,
    chunk_tokens: ChunkTokens = EngineConfig.chunk_tokens,
    encode_patches: EncodePatches = EngineConfig.encode_patches,
    embedding_cache_mib: EmbeddingCacheMib = EngineConfig.embedding_cache_bytes // MEBI,
    runner: Runner = EngineConfig.runner,
    step_ms: StepMs = EngineConfig.step_ms,
    ready_timeout: ReadyTimeout = RankConfig.ready_timeout_s,
    heartbeat: Heartbeat = RankConfig.heartbeat_s,
    group_timeout: GroupTimeout = RankConfig.group_timeout_s,
    waiting_payload_mib: WaitingPayloadMib = RankConfig.waiting_payload_bytes // MEBI,
    auto_threshold_kib: AutoThresholdKib = None,
    auto_timing: AutoTiming = RankConfig.auto_timing,
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
            waiting_payload_bytes=waiting_payload_mib * MEBI,
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


def rank(
    settings: Annotated[str, typer.Argument(help="The rank's settings, as serve --external-ranks prints them.")],
) -> None:
    """Run one rank, started by torchrun on the front end's host."""
    from coatcheck.engine.ranks.main import run
    from coatcheck.engine.ranks.settings import RankSettings

    run(RankSettings.decode(settings))
