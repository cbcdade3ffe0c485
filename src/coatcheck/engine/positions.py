"""M-RoPE positions, by the model's own formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from coatcheck.messages import Item


class ModelPositions:
    """A :class:`coatcheck.strategies.Positions` that asks the model's ``get_rope_index``."""

    def __init__(self, model: Any) -> None:
        self._rope_index = model.get_rope_index  # of a Qwen2_5_VLModel; reads its config only

    def __call__(self, ids: torch.Tensor, items: Sequence[Item]) -> tuple[torch.Tensor, int]:
        """See :class:`coatcheck.strategies.Positions`."""
        if not items:
            return torch.arange(len(ids)).expand(3, -1).contiguous(), 0
        kinds = torch.zeros(1, len(ids), dtype=torch.int32)
        for item in items:
            kinds[0, item.start : item.start + item.count] = 1 if item.seconds is None else 2  # image, video
        videos = [item for item in items if item.seconds is not None]
        positions, delta = self._rope_index(
            ids[None],
            kinds,
            image_grid_thw=torch.tensor([item.grid for item in items if item.seconds is None]),
            video_grid_thw=torch.tensor([item.grid for item in videos]),
            second_per_grid_ts=torch.tensor([item.seconds for item in videos]),
        )
        return positions[:, 0].contiguous(), int(delta)
