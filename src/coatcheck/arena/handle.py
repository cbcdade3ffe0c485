"""A payload in the arena, as its readers are told of it."""

from __future__ import annotations

import math
from typing import Literal, Protocol

from coatcheck.wire import Record

PixelForm = Literal["uint8", "float32"]  # compact, wide: see coatcheck.pixels

ITEM_SIZE = {"float32": 4, "uint8": 1}  # bytes per value


class Handle(Record, frozen=True):
    """A payload in the arena, at most 128 bytes encoded. Valid while its request holds a lease on the block."""

    offset: int  # bytes from the start of the segment, a multiple of 4096
    nonce: int  # random, 64 bits: equal to the block's as long as the block is this payload's
    shape: tuple[int, ...]  # contiguous, row-major, little-endian
    dtype: PixelForm


class Described(Protocol):
    """Anything that says of what shape and dtype a payload is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Contiguous, row-major, little-endian."""
        ...

    @property
    def dtype(self) -> PixelForm:
        """Of each value."""
        ...


def nbytes(payload: Described) -> int:
    """Bytes that the payload takes."""
    return math.prod(payload.shape) * ITEM_SIZE[payload.dtype]
