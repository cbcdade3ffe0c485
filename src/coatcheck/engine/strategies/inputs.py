"""What every strategy delivers: one request's inputs, ready for the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from coatcheck.pixels import PixelTable


@dataclass(frozen=True)
class MultimodalItem:
    """One image or video of a request."""

    pixels: torch.Tensor  # (patches, values), host memory, read-only by convention: it may view a received buffer
    grid: tuple[int, int, int]  # (t, h, w) in patches
    start: int  # index in the prompt of its first placeholder token
    count: int  # placeholder tokens
    hash: int  # first 8 bytes of the item's digest
    pad_value: int  # stands for the item's tokens wherever prompts are compared; never a token id
    digest: bytes = b""  # identity, as in :class:`coatcheck.intake.records.Item`
    table: PixelTable | None = None  # None: pixels are wide (float32), else they are compact (uint8)
    seconds: float | None = None  # a video's, from one temporal patch to the next; None: an image

    def wide(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """(patches, width) float32 on ``device``, as the model's processor makes it. Compact pixels travel there so."""
        pixels = self.pixels.to(device)
        return pixels if self.table is None else self.table.widen(pixels)


@dataclass(frozen=True)
class MultimodalInputs:
    """One request's inputs. All tensors in host memory; the engine moves what it needs to its device.

    Freed when the last reference goes: a rank drops its own when a plan ends the request.
    """

    ids: torch.Tensor  # (length,) int64
    items: tuple[MultimodalItem, ...]
    positions: torch.Tensor  # (3, length) int64: temporal, height, width (M-RoPE)
    position_delta: int  # position of token i >= length is i + position_delta, on all three axes

    def digest(self) -> str:
        """sha256 (hex) over ids, positions, grids, digests and wide pixels, bit for bit. For debugging; slow."""
        state = hashlib.sha256()
        for tensor in (self.ids, self.positions, torch.tensor(self.position_delta)):
            state.update(tensor.contiguous().numpy().tobytes())
        for item in self.items:
            described = (item.grid, item.start, item.count, item.hash, item.pad_value, item.digest, item.seconds)
            state.update(repr(described).encode())
            state.update(item.wide().contiguous().numpy().data.cast("B"))
        return state.hexdigest()
