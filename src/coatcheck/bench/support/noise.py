"""Pictures of smooth noise, as a benchmark's images."""

from __future__ import annotations

import numpy as np
from PIL import Image

QUALITY = 90  # of the JPEGs made of them


def smooth(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """``size``: (width, height)."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)
