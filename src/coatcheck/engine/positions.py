"""M-RoPE positions, by the model's own formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class ModelPositions:
    """A :class:`coatcheck.strategies.Positions` that asks the model's ``get_rope_index``."""

    def __init__(self, model: Any) -> None:
        self._rope_index = model.get_rope_index  # of a Qwen2_5_VLModel; reads its config only

    def __call__(
        self, ids: torch.Tensor, spans: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int, int]]
    ) -> tuple[torch.Tensor, int]:
        """See :class:`coatcheck.strategies.Positions`."""
        if not spans:
            return torch.arange(len(ids)).expand(3, -1).contiguous(), 0
        kinds = torch.zeros(1, len(ids), dtype=torch.int32)
        for start, count in spans:
            kinds[0, start : start + count] = 1  # 1: image
        positions, delta = self._rope_index(ids[None], kinds, image_grid_thw=torch.tensor(grids))
        return positions[:, 0].contiguous(), int(delta)
