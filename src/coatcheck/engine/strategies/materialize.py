"""Materializing: what arrived -> :class:`MultimodalInputs`. What SGLang's ``MultimodalInputs.from_dict`` does.

Invalid items are dropped, each item gets its pad value from its digest, multimodal positions are computed, and
tensors are made ready for the model. No pixel is copied: the tensors view the frames they came in, or the arena.

What came as a frame in SGLang's form, wide, is hashed as SGLang hashes it (sha256 over the pixels), since that is part
of what is compared; identity is the item's digest under every carrier.

numpy does what is to be computed, not torch: after a sleep, which is how a request finds a rank that is not busy, this
takes 0.45 ms of CPU for an image of 25 MB, with torch's operators 0.88 (2 cores, median of 80).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from coatcheck.arena.handle import Handle
from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.inputs import MultimodalInputs, MultimodalItem
from coatcheck.errors import MaterializeError, WireError
from coatcheck.intake.records import Item, Tensor, check_frames
from coatcheck.pixels import PixelTable
from coatcheck.tensor_view import tensor_view
from coatcheck.wire import Buffer

PAD_SHIFT = 1_000_000  # pad values start above every vocabulary; SGLang 0.5.23: MM_PAD_SHIFT_VALUE
PAD_RANGE = 1 << 30  # and keep this many distinct values; SGLang 0.5.23: hash % (1 << 30)
NO_ITEM = -1  # no token id
MAX_SECONDS = 86_400.0  # from one temporal patch of a video to the next: positions are made of it


DTYPES = {"float32": torch.float32, "uint8": torch.uint8}

View = Callable[[Handle], Buffer]
"""What a handle stands for, read-only, valid within the lease. Raises HandleInvalid or HandleStale."""


class Positions(Protocol):
    """Positions of a prompt, as the model wants them."""

    def __call__(self, length: int, items: Sequence[Item]) -> tuple[NDArray[np.int64], int]:
        """``length``: in tokens; ``items``: in the prompt's order -> ((3, length), position delta)."""
        ...


def no_arena(handle: Handle) -> Buffer:
    """A :data:`View` for ranks without an arena."""
    raise MaterializeError("a handle came, but this rank has no arena")


def tensor_over(payload: Buffer, pixels: Tensor | Handle) -> torch.Tensor:
    """Over the payload, without a copy; read-only by contract (MultimodalItem). Valid as long as the payload is."""
    return tensor_view(payload, DTYPES[pixels.dtype]).view(pixels.shape)


def is_valid(item: Item) -> bool:
    """An item without placeholders or without pixels carries nothing and is dropped."""
    return item.count > 0 and 0 not in item.pixels.shape


@dataclass(frozen=True)
class Materialize:
    """A :data:`~coatcheck.engine.strategies.base.Materializer` for one model.

    ``image`` and ``video`` are the token ids that stand for an item's tokens in a prompt; ``merge`` the edge, in
    patches, of the square that becomes one token; ``width`` the values per patch of wide pixels; ``view`` gets at what
    handles stand for; ``table`` widens compact pixels (None: they are refused).
    """

    positions: Positions
    image: int
    video: int
    merge: int
    width: int
    view: View = no_arena
    table: PixelTable | None = None

    def __call__(self, arrived: Arrived, frames: Sequence[Buffer]) -> MultimodalInputs:
        """Raises MaterializeError if items, frames and prompt do not fit together."""
        try:
            check_frames(arrived.items, frames)
        except WireError as error:
            raise MaterializeError(str(error)) from error
        ids = self._whole(np.array(arrived.ids, dtype=np.int64), arrived.items)
        valid = [item for item in arrived.items if is_valid(item)]
        self._check_spans(ids, valid)
        items = tuple(self._item(item, frames) for item in valid)
        positions, delta = self.positions(len(ids), valid)
        return MultimodalInputs(torch.from_numpy(ids), items, torch.from_numpy(positions), delta)

    def _whole(self, ids: NDArray[np.int64], items: Sequence[Item]) -> NDArray[np.int64]:
        """The prompt as the model gets it: an item's placeholder as often as it has tokens."""
        if not items:
            return ids
        places = np.flatnonzero((ids == self.image) | (ids == self.video))
        if len(places) != len(items) or min(item.count for item in items) < 0:
            raise MaterializeError(f"{len(items)} items came, and the prompt has {len(places)} placeholders")
        times = np.ones_like(ids)
        times[places] = [item.count for item in items]
        return ids.repeat(times)

    def _check_spans(self, ids: NDArray[np.int64], items: Sequence[Item]) -> None:
        """The items' spans are exactly the prompt's placeholders, in order."""
        if len(ids) == 0:
            raise MaterializeError("the prompt is empty")
        expected = np.full(len(ids), NO_ITEM)
        end = 0
        for item in items:
            if item.start < end or item.start + item.count > len(ids):
                raise MaterializeError(f"item at {item.start} overlaps its neighbour or leaves the prompt")
            end = item.start + item.count
            expected[item.start : end] = self.image if item.seconds is None else self.video
        placeholders = (ids == self.image) | (ids == self.video)
        if not np.array_equal(expected, np.where(placeholders, ids, NO_ITEM)):
            raise MaterializeError("the items do not cover the prompt's image and video placeholders")

    def _item(self, item: Item, frames: Sequence[Buffer]) -> MultimodalItem:
        t, h, w = item.grid
        if item.seconds is not None and not 0 < item.seconds < MAX_SECONDS:
            raise MaterializeError(f"{item.seconds} seconds are no distance between the frames of a video")
        compact = item.pixels.dtype == "uint8"
        if compact and self.table is None:
            raise MaterializeError("compact pixels came, but this model's pixels cannot be widened")
        width = self.width
        if compact and self.table is not None:
            width = self.table.compact_widths[item.seconds is not None]
        if item.pixels.shape != (t * h * w, width) or item.count * self.merge**2 != t * h * w:
            raise MaterializeError(f"grid {item.grid} does not fit pixels {item.pixels.shape} and {item.count} tokens")
        if isinstance(item.pixels, Handle):
            payload = self.view(item.pixels)
        else:
            payload = frames[item.pixels.frame]
            if not compact:
                hashlib.sha256(payload).digest()  # SGLang's identity, here only its cost
        content = int.from_bytes(item.digest[:8], "big")
        return MultimodalItem(
            pixels=tensor_over(payload, item.pixels),
            grid=item.grid,
            start=item.start,
            count=item.count,
            hash=content,
            pad_value=PAD_SHIFT + content % PAD_RANGE,
            digest=item.digest,
            seconds=item.seconds,
            table=self.table if compact else None,
        )
