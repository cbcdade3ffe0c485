"""The KV cache of one rank: its memory. Who has which part of it: ``kv_regions.py``."""

from __future__ import annotations

import torch


class KVPool:
    """Keys and values of all running requests on this rank, allocated once."""

    def __init__(
        self, layers: int, heads: int, tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, 2, heads, tokens, head_dim)  # heads: this rank's KV heads
        self.store = torch.empty(shape, dtype=dtype, device=device)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, each (heads, tokens, head_dim)."""
        return self.store[index, 0], self.store[index, 1]
