"""Attention over packed sequences: all requests' tokens of a step in one row, each attending to its own KV only.

Nothing is padded and no mask spans requests, so a request's result depends on the batch only through the rounding of
the matrix products it shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from coatcheck.engine.model.kv_cache import KVPool

NAME = "coatcheck_packed"  # as coatcheck.engine.model.qwen2_5_vl registers it with transformers


@dataclass(frozen=True)
class Segment:
    """One request's part of a packed row."""

    row: int  # first index in the row
    start: int  # position in the sequence of its first token
    count: int  # tokens
    kv_start: int  # the request's region in the pool


@dataclass(frozen=True)
class Packed:
    """What the attention of one step needs to know; passed through the model as a keyword."""

    pool: KVPool
    segments: tuple[Segment, ...]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, row, head_dim)
    key: torch.Tensor,  # (1, kv_heads, row, head_dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packed: Packed | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Writes the new keys and values into the pool, then attends, causally, request by request.

    -> (1, row, heads, head_dim)
    """
    assert packed is not None and attention_mask is None
    keys, values = packed.pool.layer(module.layer_idx)  # type: ignore[arg-type]
    out = torch.empty_like(query)
    for segment in packed.segments:
        row = slice(segment.row, segment.row + segment.count)
        length = segment.start + segment.count
        new = slice(segment.kv_start + segment.start, segment.kv_start + length)
        keys[:, new] = key[0, :, row]
        values[:, new] = value[0, :, row]
        known = slice(segment.kv_start, segment.kv_start + length)
        mask = None
        if segment.start and segment.count > 1:
            mask = torch.ones(segment.count, length, dtype=torch.bool, device=query.device).tril(segment.start)
        out[:, :, row] = scaled_dot_product_attention(
            query[:, :, row],
            keys[None, :, known],
            values[None, :, known],
            attn_mask=mask,
            is_causal=segment.start == 0 and segment.count > 1,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out.transpose(1, 2), None
