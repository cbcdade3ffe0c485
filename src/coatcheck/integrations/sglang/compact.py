"""An image's pixels as mode ``whole`` has them: uint8 in the arena, an item's feature until the model asks for it.

SGLang's own features are float32, normalized, every frame twice: eight times the bytes. What is here stands in their
place in ``MultimodalDataItem.feature``, and is widened to their very bits. A rank does that in the moment in which its
model encodes the item, on the model's device and in its dtype. The tokenizer's process does it if the request has to
take SGLang's own way after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from coatcheck.arena.handle import Handle
from coatcheck.delivery.upload import widened
from coatcheck.pixels import LEVELS, PixelTable


class Holding(Protocol):
    """Keeps the blocks of a request's images, as long as something refers to it."""

    def read(self, handle: Handle) -> torch.Tensor:
        """A copy of the block's values, uint8, of the handle's shape. Raises Trouble if there is no arena any more."""
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """In the tokenizer's process: written by a worker."""

    handle: Handle  # (patches, channels * area) uint8
    table: PixelTable
    holding: Holding

    def wide(self) -> torch.Tensor:
        """(patches, width) float32, on the CPU: as SGLang's processor on the CPU makes it. Raises Trouble."""
        return self.table.widen(self.holding.read(self.handle))


@dataclass(frozen=True, eq=False)
class Compact:
    """On a rank: lies over the arena, and must not be written to. Lent as long as something refers to ``pixels``."""

    pixels: torch.Tensor  # (patches, channels * area) uint8
    levels: bytes  # the table's values, (channels, 256) float32
    temporal: int  # frames in a patch of the wide form
    area: int  # pixels in one frame of a patch

    def wide(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """(patches, width), in memory of its own: what SGLang's processor makes on the CPU, then cast to ``dtype``."""
        return widened(self.pixels, _levels(self.levels, device, dtype), self.temporal, self.area)


@lru_cache(maxsize=8)
def _levels(levels: bytes, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    values = torch.frombuffer(bytearray(levels), dtype=torch.float32).view(-1, LEVELS)
    return values.to(device).to(dtype)


def stored(inputs: Any) -> list[Stored]:
    """The stored images of a request's inputs, in the items' order."""
    return [item.feature for item in inputs.mm_items if isinstance(item.feature, Stored)]


def levels(table: PixelTable) -> bytes:
    """The table's values as they travel."""
    return table.values.numpy().tobytes()


def handles(images: Sequence[Stored]) -> tuple[Handle, ...]:
    """In their order."""
    return tuple(image.handle for image in images)
