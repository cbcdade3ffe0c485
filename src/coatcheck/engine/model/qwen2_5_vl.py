"""Loading a Qwen2.5-VL checkpoint and sharding its language layers over the ranks of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

from coatcheck.engine.model.attention import NAME as ATTENTION
from coatcheck.engine.model.attention import packed_attention
from coatcheck.engine.model_files import check_divides, read_config

AttentionInterface.register(ATTENTION, packed_attention)

AllReduce = Callable[[torch.Tensor], None]  # sums in place over the ranks


def _take(linear: nn.Linear, dim: int, rank: int, ranks: int) -> None:
    """Keeps this rank's part of a linear layer: its output rows (dim 0) or its input columns (dim 1)."""
    linear.weight = nn.Parameter(linear.weight.chunk(ranks, dim)[rank].clone(), requires_grad=False)
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.chunk(ranks)[rank].clone(), requires_grad=False)


def shard(layers: Sequence[nn.Module], rank: int, ranks: int, all_reduce: AllReduce) -> None:
    """Splits decoder layers in place.

    Q, k, v, gate, up by output; o, down by input, their results summed over the ranks.
    """

    def summed(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        all_reduce(output)

    for layer in layers:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            _take(linear, 0, rank, ranks)
        for linear in (attention.o_proj, mlp.down_proj):
            _take(linear, 1, rank, ranks)
            linear.register_forward_hook(summed)


def load(
    path: Path, dtype: torch.dtype | str, device: torch.device, rank: int, ranks: int, all_reduce: AllReduce
) -> Any:
    """The Qwen2_5_VLForConditionalGeneration, this rank's part of it, on ``device``, in evaluation mode.

    The vision tower is replicated.     ``dtype``: a torch dtype, or "auto" for the checkpoint's own.
    """
    check_divides(read_config(path), ranks)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path,
        dtype=dtype,
        local_files_only=True,
        attn_implementation={"text_config": ATTENTION, "vision_config": "sdpa"},
    )
    if ranks > 1:
        shard(list(model.model.language_model.layers), rank, ranks, all_reduce)
    model.requires_grad_(False)
    return model.to(device).eval()
