"""M-RoPE positions (Qwen2-VL, arXiv:2409.12191, section 2.1; absolute time as in Qwen2.5-VL, arXiv:2502.13923).

The same as the model's ``get_rope_index`` (``tests/engine/model/test_positions.py`` compares them), which walks over
every token in Python: on a scheduler's thread that would be most of what a request's inputs cost. Text behind a video
goes on behind the larger edge of its frames, as in transformers 5; transformers 4 went on behind its time
too, if that is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coatcheck.intake.records import Item


class ModelPositions:
    """A :class:`coatcheck.engine.strategies.Positions` for one model."""

    def __init__(self, config: Any) -> None:
        """``config``: of a Qwen2.5-VL model."""
        self._merge: int = config.vision_config.spatial_merge_size
        self._tokens_per_second: int = config.vision_config.tokens_per_second

    def __call__(self, length: int, items: Sequence[Item]) -> tuple[NDArray[np.int64], int]:
        """See :class:`coatcheck.engine.strategies.Positions`.

        Text counts up on all three axes. An item's tokens start where the text before it ended and spread over time,
        height and width; the text after it goes on behind the larger edge.
        """
        positions = np.empty((3, length), dtype=np.int64)
        done = base = 0
        for item in items:
            text = item.start - done
            positions[:, done : item.start] = np.arange(base, base + text)
            base += text
            done = item.start + item.count
            t, h, w = item.grid[0], item.grid[1] // self._merge, item.grid[2] // self._merge
            axes = positions[:, item.start : done]
            axes[0].reshape(t, h, w)[:] = self._times(t, item.seconds)[:, None, None] + base
            axes[1].reshape(t, h, w)[:] = np.arange(base, base + h)[:, None]
            axes[2].reshape(t, h, w)[:] = np.arange(base, base + w)
            base += max(h, w)
        positions[:, done:] = np.arange(base, base + length - done)
        return positions, int(positions.max()) + 1 - length

    def _times(self, patches: int, seconds: float | None) -> NDArray[np.int64]:
        """Of temporal patches, in steps of the model; float32 before it is cut off, as there."""
        if seconds is None:
            return np.arange(patches)
        step = np.float32(self._tokens_per_second) * np.float32(seconds)
        return (np.arange(patches, dtype=np.float32) * step).astype(np.int64)
