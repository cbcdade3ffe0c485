"""Compact pixels, and the table that widens them to the processor's very bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.errors import ConfigError
from coatcheck.pixels import PixelTable, image_processor


@pytest.fixture(scope="module")
def processor() -> Any:
    return image_processor(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def table(processor: Any) -> PixelTable:
    return PixelTable.of(processor)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def both(processor: Any, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Compact and wide, each as the processor makes it."""
    plain = {"do_rescale": False, "do_normalize": False, "temporal_patch_size": 1}
    compact = processor(images=[image], return_tensors="np", **plain)["pixel_values"]
    assert (compact == compact.astype(np.uint8)).all(), "the processor's resized values are no whole numbers"
    wide = processor(images=[image], return_tensors="np")["pixel_values"]
    return torch.from_numpy(compact.astype(np.uint8)), torch.from_numpy(wide)


@pytest.mark.parametrize("size", [(448, 448), (300, 401), (30, 900), (56, 28)])
def test_widening_gives_the_processor_s_bits(processor: Any, table: PixelTable, size: tuple[int, int]) -> None:
    compact, wide = both(processor, picture(*size))
    assert compact.nbytes * 8 == wide.nbytes
    assert torch.equal(table.widen(compact), wide)
    assert table.widen(wide) is wide
    where = torch.randperm(wide.numel())[:1000]
    assert torch.equal(table.at(compact, where), wide.flatten()[where])
    assert torch.equal(table.at(wide, where), wide.flatten()[where])


def test_every_value_of_every_channel(processor: Any, table: PixelTable) -> None:
    mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (processor.image_mean, processor.image_std))
    expected = (torch.arange(256, dtype=torch.float64) / 255 - mean[:, None]) / std[:, None]
    torch.testing.assert_close(table.values, expected.float())
    assert table.values.shape == (3, 256)


def test_a_video_s_frames_are_both_there(processor: Any, table: PixelTable) -> None:
    first, second = (both(processor, picture(84, height)) for height in (57, 56))
    frames = [compact.view(-1, 3, 1, table.area) for compact, _ in (first, second)]
    video = torch.cat(frames, dim=2).reshape(len(first[0]), -1)
    assert video.shape[1] == table.compact_widths[1] == table.width
    wide = table.widen(video).view(-1, 3, 2, table.area)
    for at, (_, alone) in enumerate((first, second)):
        assert torch.equal(wide[:, :, at], alone.view(-1, 3, 2, table.area)[:, :, at])
    where = torch.arange(0, wide.numel(), 7)
    assert torch.equal(table.at(video, where), wide.flatten()[where])


def test_a_processor_without_normalization_has_a_table_too() -> None:
    plain = image_processor(DEFAULT_MODEL)
    plain.do_normalize = False
    torch.testing.assert_close(PixelTable.of(plain).values, (torch.arange(256) / 255).expand(3, 256))


def test_a_processor_that_looks_at_more_than_the_value_is_refused(processor: Any) -> None:
    class Vignette:
        patch_size, merge_size, temporal_patch_size = 14, 2, 2

        def __call__(self, **options: Any) -> dict[str, Any]:
            made = processor(**options)
            made["pixel_values"] = made["pixel_values"] + np.linspace(0, 1, 1176, dtype=np.float32)
            return dict(made)

    with pytest.raises(ConfigError, match=r"--pixels: .* use float32"):
        PixelTable.of(Vignette())


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [0.5, 0.25, 0.3]},
        {"patch_size": 16, "temporal_patch_size": 4},
        None,  # nothing but the defaults
    ],
    ids=str,
)
def test_the_table_read_from_json_is_the_processor_s(tmp_path: Path, changed: dict[str, Any] | None) -> None:
    config = {"image_processor_type": "Qwen2VLImageProcessor"}
    if changed is not None:
        config = json.loads((DEFAULT_MODEL / "preprocessor_config.json").read_text()) | changed
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    PixelTable.read(tmp_path).check(image_processor(tmp_path))


@pytest.mark.parametrize(("name", "value"), [("do_normalize", False), ("patch_size", 16), ("temporal_patch_size", 4)])
def test_a_processor_that_does_not_do_what_its_file_says_is_refused(name: str, value: Any) -> None:
    other = image_processor(DEFAULT_MODEL)
    setattr(other, name, value)
    with pytest.raises(ConfigError, match=r"--pixels: .* use float32"):
        PixelTable.read(DEFAULT_MODEL).check(other)


@pytest.mark.parametrize("text", [None, "{", '{"image_mean": [1, 2]}'])
def test_a_preprocessor_config_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"--model: .*preprocessor_config\.json"):
        PixelTable.read(tmp_path)


def test_a_directory_without_a_processor(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        image_processor(tmp_path)
