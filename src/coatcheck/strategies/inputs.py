"""What every strategy delivers: one request's inputs, ready for the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MultimodalItem:
    """One image of a request."""

    pixels: (
        torch.Tensor
    )  # (patches, width) float32, host memory, read-only by convention: it may view a received buffer
    grid: tuple[int, int, int]  # (t, h, w) in patches
    start: int  # index in the prompt of its first placeholder token
    count: int  # placeholder tokens
    hash: int  # first 8 bytes of the item's digest
    pad_value: int  # stands for the item's tokens wherever prompts are compared; never a token id
    digest: bytes = b""  # identity, as in :class:`coatcheck.messages.Item`


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
        """sha256 (hex) over ids, positions, grids, digests and pixels, bit for bit. For debugging; reads every byte."""
        state = hashlib.sha256()
        for tensor in (self.ids, self.positions, torch.tensor(self.position_delta)):
            state.update(tensor.contiguous().numpy().tobytes())
        for item in self.items:
            state.update(repr((item.grid, item.start, item.count, item.hash, item.pad_value, item.digest)).encode())
            state.update(item.pixels.contiguous().numpy().data.cast("B"))
        return state.hexdigest()
