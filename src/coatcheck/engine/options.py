"""Options of the engine, as every command that starts one takes them. Defaults stand with the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Tp = Annotated[int, typer.Option(help="Ranks of the tensor-parallel group.")]
Model = Annotated[Path, typer.Option(help="Directory of a Qwen2.5-VL checkpoint (default: the model in the package).")]
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
