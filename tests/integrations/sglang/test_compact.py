"""Images in the arena as an item's feature: read back, packed for the ranks, widened to the bits of float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coatcheck.arena.handle import Handle
from coatcheck.errors import MaterializeError
from coatcheck.integrations.sglang.codec import Unpackable, pack, unpack
from coatcheck.integrations.sglang.compact import Compact, Stored, stored
from coatcheck.pixels import PixelTable, image_processor

PATCHES, WIDTH = 12, 588


class Kept:
    """Stands for the arena."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self._pixels = pixels

    def read(self, handle: Handle) -> torch.Tensor:
        return self._pixels.clone()


@pytest.fixture(scope="module")
def table(model_dir: Path) -> PixelTable:
    return PixelTable.of(image_processor(model_dir))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (PATCHES, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def image(table: PixelTable, pixels: torch.Tensor) -> Stored:
    return Stored(Handle(4096, 7, (PATCHES, WIDTH), "uint8"), table, Kept(pixels))


def test_what_a_rank_widens_is_what_the_tokenizer_would(image: Stored, pixels: torch.Tensor, table: PixelTable) -> None:
    body = pack({"images": [image, image]}, [image])
    first, second = unpack(body, [memoryview(pixels.numpy().tobytes())])["images"]
    assert first is second
    assert isinstance(first, Compact)
    wide = first.wide(torch.device("cpu"), torch.float32)
    assert torch.equal(wide, table.widen(pixels))
    assert torch.equal(wide, image.wide())
    assert torch.equal(first.wide(torch.device("cpu"), torch.bfloat16), wide.to(torch.bfloat16)), "cast as SGLang casts"
    assert wide.is_contiguous()


def test_several_images_carry_one_table(image: Stored, table: PixelTable, pixels: torch.Tensor) -> None:
    images = [Stored(image.handle, table, Kept(pixels)) for _ in range(4)]
    body = pack(images, images)
    assert len(body) < 2 * table.values.nbytes
    data = memoryview(pixels.numpy().tobytes())
    assert len(unpack(body, [data] * 4)) == 4
    with pytest.raises(MaterializeError, match="block 3 of 3"):
        unpack(body, [data] * 3)
    with pytest.raises(MaterializeError, match="bytes for a tensor"):
        unpack(body, [data[1:]] * 4)


def test_an_image_that_does_not_travel_beside_the_body_is_not_packed(image: Stored) -> None:
    with pytest.raises(Unpackable, match="another request"):
        pack([image], [])


def test_a_widened_image_lets_go_of_the_block(image: Stored, pixels: torch.Tensor) -> None:
    block = np.frombuffer(bytearray(pixels.numpy().tobytes()), np.uint8)
    import weakref

    over: list[int] = []
    weakref.finalize(block, over.append, 1)
    compact = unpack(pack(image, [image]), [block.data])
    del block
    wide = compact.wide(torch.device("cpu"), torch.float32)
    assert not over
    del compact
    assert over == [1], "what is widened has memory of its own"
    assert wide.shape == (PATCHES, 2 * WIDTH)


def test_stored_images_are_found_among_items(image: Stored) -> None:
    item: Any = type("Item", (), {})
    one, other = item(), item()
    one.feature, other.feature = image, torch.zeros(3)
    inputs: Any = type("Inputs", (), {"mm_items": [one, other]})
    assert stored(inputs) == [image]
