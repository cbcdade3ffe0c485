"""Pixels in their two forms, and the table between them.

*Wide*: (patches, channels * temporal_patch * patch * patch) float32, normalized. What the model takes, and what SGLang
sends. *Compact*: uint8, as decoded and resized, (patches, channels * frames * patch * patch), where ``frames`` is 1 for
a picture, whose one frame the model takes ``temporal_patch`` times, and ``temporal_patch`` for a video. A picture takes
an eighth of its wide form. Normalization is a function of channel and value alone, so it is a table of channels x 256.
Every value in it is what the model's own processor makes of it, so widening gives its very bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from coatcheck.errors import ConfigError

LEVELS = 256


def image_processor(model: Path) -> Any:
    """The model's own image processor. Raises ConfigError if the directory has no usable one."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    try:
        return Qwen2VLImageProcessorPil.from_pretrained(str(model), local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a directory it cannot use
        raise ConfigError(f"--model: {model} has no usable preprocessor_config.json: {error}") from error


class _Preprocessor(msgspec.Struct, frozen=True):
    """Of preprocessor_config.json; names and defaults are those of transformers' Qwen2VLImageProcessor."""

    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    patch_size: int = 14
    temporal_patch_size: int = 2


@dataclass(frozen=True, eq=False)
class PixelTable:
    """From compact to wide."""

    values: torch.Tensor  # (channels, 256) float32
    temporal: int  # frames in a patch of the wide form
    area: int  # pixels in one frame of a patch

    @staticmethod
    def of(processor: Any) -> PixelTable:
        """The table of a Hugging Face image processor of the Qwen2-VL family.

        Raises ConfigError if the processor does more with a value than look at it and its channel.
        """
        from PIL import Image

        edge = processor.patch_size * processor.merge_size
        levels = np.arange(LEVELS, dtype=np.uint8).repeat(edge)[None, :, None]
        image = Image.fromarray(np.broadcast_to(levels, (edge, LEVELS * edge, 3)).copy())
        rows = processor(images=[image], do_resize=False, return_tensors="np")["pixel_values"]
        tiles = rows.reshape(LEVELS, processor.merge_size**2, 3, -1)
        values = tiles[:, 0, :, 0]
        if not (tiles == values[:, None, :, None]).all():
            raise ConfigError("--pixels: this model's image processor does not normalize value by value; use float32")
        table = torch.from_numpy(values.T.astype(np.float32))
        return PixelTable(table.contiguous(), processor.temporal_patch_size, processor.patch_size**2)

    @staticmethod
    def read(model: Path) -> PixelTable:
        """The table as preprocessor_config.json has it: without transformers, whose import takes seconds.

        It is computed as the processor computes it. Raises ConfigError if the file cannot be used. ``check`` tells
        whether the processor agrees; the front end's workers ask that before they make anything compact.
        """
        path = model / "preprocessor_config.json"
        try:
            config = msgspec.json.decode(path.read_bytes(), type=_Preprocessor)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"--model: {model} has no usable preprocessor_config.json: {error}") from error
        factor = config.rescale_factor if config.do_rescale else 1.0
        values = np.tile((np.arange(LEVELS, dtype=np.float64) * factor).astype(np.float32), (3, 1))
        if config.do_normalize:
            mean, std = (np.array(of, np.float32)[:, None] for of in (config.image_mean, config.image_std))
            values = (values - mean) / std
        return PixelTable(torch.from_numpy(values), config.temporal_patch_size, config.patch_size**2)

    def check(self, processor: Any) -> None:
        """Raises ConfigError unless this is ``processor``'s table, to the bit."""
        own = PixelTable.of(processor)
        if (own.temporal, own.area) != (self.temporal, self.area) or not torch.equal(own.values, self.values):
            raise ConfigError(
                "--pixels: this model's image processor does not do what preprocessor_config.json says; use float32"
            )

    @property
    def width(self) -> int:
        """Values per patch of the wide form."""
        return len(self.values) * self.temporal * self.area

    @property
    def compact_widths(self) -> tuple[int, int]:
        """Values per patch of the compact form: of a picture, of a video."""
        return len(self.values) * self.area, self.width

    def widen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compact pixels -> wide ones, on the same device; wide pixels are returned as they are."""
        if pixels.dtype == torch.float32:
            return pixels
        channels, patches = len(self.values), len(pixels)
        frames = pixels.view(patches, channels, -1, self.area)
        wide = torch.empty((patches, channels, self.temporal, self.area), device=pixels.device)
        for channel, values in enumerate(self.values.to(pixels.device)):
            wide[:, channel] = values[frames[:, channel].int()]  # a picture's one frame goes into every place
        return wide.view(patches, -1)

    def at(self, pixels: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """``widen(pixels).flatten()[where]`` without widening the rest. ``where``: int64."""
        flat = pixels.flatten()
        if pixels.dtype == torch.float32:
            return flat[where]
        frames = pixels.shape[1] // (len(self.values) * self.area)
        patch, inside = where // self.width, where % self.width
        channel = inside // (self.temporal * self.area)
        frame = inside // self.area % self.temporal % frames
        compact = ((patch * len(self.values) + channel) * frames + frame) * self.area + inside % self.area
        return self.values[channel, flat[compact].long()]
