"""Materializing alone: what is dropped, hashed, refused. Positions are a stand-in here."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coatcheck.engine.records import Arrived, Sampling
from coatcheck.engine.strategies.materialize import PAD_RANGE, PAD_SHIFT, Materialize
from coatcheck.engine.strategies.table import ALIASES, AUTO, STRATEGIES, canonical, strategy_named
from coatcheck.errors import MaterializeError, UnknownStrategy
from coatcheck.intake.records import Item, Tensor
from coatcheck.pixels import PixelTable

IMAGE, VIDEO = 7, 8
DIGEST = bytes(range(100, 132))


def line(length: int, items: Sequence[Item]) -> tuple[NDArray[np.int64], int]:
    return np.tile(np.arange(length), (3, 1)), len(items)


materialize = Materialize(line, image=IMAGE, video=VIDEO, merge=2, width=3)


def arrived(ids: tuple[int, ...], *items: Item) -> Arrived:
    return Arrived("r", "dict-inline", ids, items, Sampling(1))


def item(
    frame: int, start: int, count: int = 1, grid: tuple[int, int, int] = (1, 2, 2), seconds: float | None = None
) -> Item:
    pixels = Tensor(frame, (grid[0] * grid[1] * grid[2], 3), "float32")
    return Item(pixels, grid, start, count, DIGEST, seconds=seconds)


PIXELS = torch.arange(12, dtype=torch.float32).reshape(4, 3)
FRAME = PIXELS.numpy().tobytes()


def test_an_item_is_viewed_and_gets_its_hash_and_pad_value_from_its_digest() -> None:
    digest = bytes(range(1, 33))
    inputs = materialize(arrived((1, IMAGE, 2), msgspec.structs.replace(item(0, 1), digest=digest)), [FRAME])
    (got,) = inputs.items
    assert torch.equal(got.pixels, PIXELS)
    assert got.hash == int.from_bytes(digest[:8], "big")
    assert got.pad_value == PAD_SHIFT + got.hash % PAD_RANGE
    assert inputs.ids.tolist() == [1, IMAGE, 2]
    assert inputs.position_delta == 1


# One channel; a picture's patch has one pixel, taken three times in the wide form.
TABLE = PixelTable(torch.arange(256.0)[None] / 255, temporal=3, area=1)
BYTES = bytes([0, 7, 100, 255])


def test_compact_pixels_are_the_same_inputs_as_wide_ones() -> None:
    both = Materialize(line, image=IMAGE, video=VIDEO, merge=2, width=3, table=TABLE)
    compact = msgspec.structs.replace(item(0, 1), pixels=Tensor(0, (4, 1), "uint8"))
    got = both(arrived((1, IMAGE), compact), [BYTES])
    wide = TABLE.widen(torch.tensor(list(BYTES), dtype=torch.uint8)[:, None])
    expected = both(arrived((1, IMAGE), item(0, 1)), [wide.numpy().tobytes()])
    assert got.items[0].pixels.dtype == torch.uint8
    assert torch.equal(got.items[0].wide(), expected.items[0].pixels)
    assert got.digest() == expected.digest()
    other = both(arrived((1, IMAGE), compact), [bytes([1, 7, 100, 255])])
    assert other.digest() != got.digest()


def test_compact_pixels_that_do_not_fit_are_refused() -> None:
    both = Materialize(line, image=IMAGE, video=VIDEO, merge=2, width=3, table=TABLE)
    narrow = msgspec.structs.replace(item(0, 1), pixels=Tensor(0, (4, 2), "uint8"))
    with pytest.raises(MaterializeError, match="does not fit"):
        both(arrived((1, IMAGE), narrow), [bytes(8)])
    compact = msgspec.structs.replace(item(0, 1), pixels=Tensor(0, (4, 1), "uint8"))
    with pytest.raises(MaterializeError, match="cannot be widened"):
        materialize(arrived((1, IMAGE), compact), [BYTES])


def test_pixels_are_not_copied() -> None:
    buffer = bytearray(FRAME)
    (got,) = materialize(arrived((IMAGE,), item(0, 0)), [buffer]).items
    buffer[:4] = torch.tensor([99.0]).numpy().tobytes()
    assert got.pixels[0, 0] == 99


def test_invalid_items_are_dropped() -> None:
    empty = Item(Tensor(0, (0, 3), "float32"), (1, 0, 0), 0, 0)
    inputs = materialize(arrived((1, IMAGE, IMAGE), empty, item(1, 1)), [b"", FRAME])
    assert [i.start for i in inputs.items] == [1]


@pytest.mark.parametrize(
    ("request_", "frames"),
    [
        (arrived(()), []),
        (arrived((1, IMAGE)), []),  # a placeholder without an item
        (arrived((1, 2), item(0, 1)), [FRAME]),  # an item without a placeholder
        (arrived((1, IMAGE), item(0, 2)), [FRAME]),  # outside the prompt
        (arrived((IMAGE, IMAGE), item(0, 0), item(1, 0)), [FRAME, FRAME]),  # two on one place
        (arrived((IMAGE,), item(0, 0)), [FRAME[:-1]]),  # bytes are missing
        (arrived((IMAGE,), item(0, 0)), []),  # the frame is missing
        (arrived((IMAGE,), item(0, 0, 2)), [FRAME]),  # the grid says one token
        (arrived((IMAGE,), item(0, 0, seconds=1.0)), [FRAME]),  # a video in an image's place
        (arrived((VIDEO,), item(0, 0)), [FRAME]),  # an image in a video's place
        (arrived((IMAGE, VIDEO), item(0, 0)), [FRAME]),  # no video
        *((arrived((VIDEO,), item(0, 0, seconds=seconds)), [FRAME]) for seconds in (0.0, -1.0, float("nan"), 1e9)),
    ],
)
def test_what_does_not_fit_together_is_refused(request_: Arrived, frames: list[bytes]) -> None:
    with pytest.raises(MaterializeError):
        materialize(request_, frames)


def test_videos_and_images_stand_side_by_side() -> None:
    frames = [FRAME * 2, FRAME]
    video = item(0, 1, 2, (2, 2, 2), seconds=0.5)
    inputs = materialize(arrived((1, VIDEO, IMAGE), video, item(1, 3)), frames)
    assert [(got.grid, got.seconds, len(got.pixels)) for got in inputs.items] == [
        ((2, 2, 2), 0.5, 8),
        ((1, 2, 2), None, 4),
    ]
    slower = materialize(arrived((1, VIDEO, IMAGE), item(0, 1, 2, (2, 2, 2), seconds=1.0), item(1, 3)), frames)
    assert inputs.digest() != slower.digest()


def test_digest_sees_every_part() -> None:
    def digest(pixels: torch.Tensor, ids: tuple[int, ...] = (1, IMAGE)) -> str:
        return materialize(arrived(ids, item(0, 1)), [pixels.numpy().tobytes()]).digest()

    changed = PIXELS.clone()
    changed[3, 2] = 5
    assert digest(PIXELS) == digest(PIXELS.clone())
    assert len({digest(PIXELS), digest(changed), digest(PIXELS, (2, IMAGE))}) == 3


def test_strategies_are_found_by_name_and_alias() -> None:
    for name in STRATEGIES:
        assert strategy_named(name).name == canonical(name) == name
    for alias, name in ALIASES.items():
        assert strategy_named(alias).name == name
    with pytest.raises(UnknownStrategy, match=rf"'fast'.*{', '.join(STRATEGIES)}, auto, 17a57fd86"):
        strategy_named("fast")


def test_auto_is_a_name_but_nothing_that_a_rank_can_obey() -> None:
    assert canonical(AUTO) == AUTO
    with pytest.raises(UnknownStrategy, match="auto is decided before"):
        strategy_named(AUTO)
