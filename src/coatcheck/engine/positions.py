"""M-RoPE positions (Qwen2-VL, arXiv:2409.12191, section 2.1; absolute time as in Qwen2.5-VL, arXiv:2502.13923).

The same as the model's ``get_rope_index`` (``tests/engine/test_positions.py`` compares them), which walks over every
token in Python: on a scheduler's thread that would be most of what a request's inputs cost. Text behind a video goes on
behind the larger edge of its frames, as in transformers 5; transformers 4 went on behind its time too, if that is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from coatcheck.messages import Item


class ModelPositions:
    """A :class:`coatcheck.strategies.Positions` for one model."""

    def __init__(self, config: Any) -> None:
        """``config``: of a Qwen2.5-VL model."""
        self._merge: int = config.vision_config.spatial_merge_size
        self._tokens_per_second: int = config.vision_config.tokens_per_second

    def __call__(self, ids: torch.Tensor, items: Sequence[Item]) -> tuple[torch.Tensor, int]:
        """See :class:`coatcheck.strategies.Positions`.

        Text counts up on all three axes. An item's tokens start where the text before it ended and spread over time,
        height and width; the text after it goes on behind the larger edge.
        """
        positions = torch.empty((3, len(ids)), dtype=torch.int64)
        done = base = 0
        for item in items:
            text = item.start - done
            positions[:, done : item.start] = torch.arange(base, base + text)
            base += text
            done = item.start + item.count
            t, h, w = item.grid[0], item.grid[1] // self._merge, item.grid[2] // self._merge
            block = positions[:, item.start : done].view(3, t, h, w)
            block[0] = self._times(t, item.seconds)[:, None, None] + base
            block[1] = torch.arange(base, base + h)[:, None]
            block[2] = torch.arange(base, base + w)
            base += max(h, w)
        positions[:, done:] = torch.arange(base, base + len(ids) - done)
        return positions, int(positions.max()) + 1 - len(ids)

    def _times(self, patches: int, seconds: float | None) -> torch.Tensor:
        """Of temporal patches, in steps of the model; float32 before it is cut off, as there."""
        if seconds is None:
            return torch.arange(patches)
        return (torch.arange(patches) * (self._tokens_per_second * torch.tensor(seconds))).long()
