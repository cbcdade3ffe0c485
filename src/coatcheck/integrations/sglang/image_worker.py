"""In a worker process: encoded images, read as SGLang reads them on a CPU, to compact pixels in the arena.

SGLang 0.5.23: ``load_image`` (Pillow, whatever it reads, EXIF left alone), ``convert("RGB")``, then the model's own
image processor with the server's options. What fails here fails the job, and SGLang's own way says what is wrong with
it.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
from collections.abc import Sequence
from typing import Any

import PIL
import pybase64  # SGLang's: what it refuses, we refuse
import torch
import transformers
from blake3 import blake3
from PIL import Image

from coatcheck.arena.queue import Want
from coatcheck.errors import BadRequest, ConfigError
from coatcheck.intake.records import Item, Slot, Stored
from coatcheck.intake.writer import PayloadWriter
from coatcheck.integrations.sglang.records import ImageProcessorConfig, Images
from coatcheck.pixels import PixelTable
from coatcheck.wire import Buffer, Decoder, from_argument

logging.getLogger("torchao").setLevel(logging.ERROR)  # which says at import what it cannot load; nobody needs it here

# Options of one call by which the processor stops at uint8, and gives each frame once.
COMPACT = {"do_rescale": False, "do_normalize": False, "temporal_patch_size": 1}


def processor(config: ImageProcessorConfig) -> Any:
    """The image processor as the tokenizer's process has it. Raises ConfigError."""
    module, _, name = config.kind.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**json.loads(config.settings))
    except Exception as error:  # transformers raises many kinds for settings that it cannot use
        raise ConfigError(f"{config.kind} cannot be made anew: {error}") from error


def table(made: Any, options: dict[str, Any]) -> PixelTable:
    """From compact to wide. Raises ConfigError unless widening gives the processor's own features, to the bit."""
    found = PixelTable.of(made)
    noise = torch.randint(0, 256, (123, 457, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    image = Image.fromarray(noise)
    whole = made(images=[image], return_tensors="pt", **options)["pixel_values"]
    pixels = made(images=[image], return_tensors="pt", **options, **COMPACT)["pixel_values"]
    if not torch.equal(found.widen(pixels.to(torch.uint8)), whole):
        raise ConfigError("this model's image processor does more than to normalize value by value")
    return found


class ImageHandler:
    """A :class:`coatcheck.intake.worker.Handler`; its items start at 0 each: the tokenizer's process has the prompt."""

    def __init__(self, config_json: str) -> None:
        """Raises ConfigError if the processor cannot be made, or not be widened."""
        config = from_argument(config_json, ImageProcessorConfig)
        self._processor = processor(config)
        self._options: dict[str, Any] = json.loads(config.options)
        table(self._processor, self._options)
        how = f"{transformers.__version__} {PIL.__version__} {config.kind} {config.settings} {config.options}"
        self._key = blake3(how.encode()).digest()  # the same bytes, processed otherwise, are another image
        self._decode = Decoder[Images](Images)

    def handle(self, body: Sequence[Buffer], writer: PayloadWriter) -> tuple[tuple[Item, ...], bytes]:
        """The images of an :class:`Images`, in order; nothing beside. Raises BadRequest and NoRoom."""
        kinds = self._decode(body[0]).base64
        opened = [self._open(image, base64) for image, base64 in zip(body[1:], kinds, strict=True)]
        slots = writer.reserve([want for _, want in opened])
        items = []
        for (image, want), slot in zip(opened, slots, strict=True):
            items.append(slot.item if isinstance(slot, Stored) else self._item(image, want, slot, writer))
        return tuple(items), b""

    def _open(self, encoded: Buffer, base64: bool) -> tuple[Image.Image, Want]:
        """The image, its header read, and the room that it needs."""
        try:
            data = pybase64.b64decode(encoded, validate=True) if base64 else bytes(encoded)
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            patches = self._processor.get_number_of_image_patches(height, width, dict(self._options))
        except Exception as error:  # Pillow's parsers raise whatever they trip over
            raise _unreadable(error) from error
        nbytes = patches * 3 * self._processor.patch_size**2
        return image, Want(nbytes, blake3(data, key=self._key).digest())

    def _item(self, image: Image.Image, want: Want, slot: Slot | None, writer: PayloadWriter) -> Item:
        try:
            with image:
                image.load()
                rgb = image if image.mode == "RGB" else image.convert("RGB")
                made = self._processor(images=[rgb], return_tensors="pt", **self._options, **COMPACT)
        except Exception as error:  # as above
            raise _unreadable(error) from error
        t, h, w = (int(n) for n in made["image_grid_thw"][0])
        pixels = writer.write(slot, made["pixel_values"].numpy(), "uint8")
        return Item(pixels, (t, h, w), 0, t * h * w // self._processor.merge_size**2, want.digest)


def _unreadable(error: Exception) -> BadRequest:
    return BadRequest(f"The image cannot be used: {type(error).__name__}", code="invalid_image")
