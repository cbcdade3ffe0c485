"""Encoded images -> patches, in two steps: what the header tells, and the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import PIL
import transformers
from blake3 import blake3
from PIL import Image

from coatcheck.frontend import images
from coatcheck.frontend.config import FrontendConfig
from coatcheck.frontend.desk import Values
from coatcheck.messages import PixelForm, Want
from coatcheck.pixels import PixelTable, image_processor

Grid = tuple[int, int, int]  # (t, h, w) in patches


class Cutter:
    """The model's image processor. Raises ConfigError if the model directory has none that can be used."""

    def __init__(self, config: FrontendConfig) -> None:
        self._processor: Any = image_processor(config.model_dir)
        self._max_pixels = config.max_pixels
        if config.pixels == "uint8":
            PixelTable.of(self._processor)  # the ranks could not widen
        how = f"{transformers.__version__} {PIL.__version__} {self._processor.to_json_string()}"
        self._key = blake3(how.encode()).digest()  # the same bytes, processed otherwise, are another item
        self.merge: int = self._processor.merge_size

    def open(self, data: bytes, param: str) -> Picture:
        """A picture of these bytes, nothing decoded yet. Raises BadRequest if its header tells that it cannot be."""
        image = images.opened(data, self._max_pixels, param)
        return Picture(self, image, blake3(data, key=self._key).digest(), param)

    def decode(self, image: Image.Image, param: str) -> Image.Image:
        """An opened image as RGB. Raises BadRequest."""
        return images.to_rgb(image, self._max_pixels, param)

    def patches(self, size: tuple[int, int]) -> int:
        """Patches of an image of ``size`` (width, height), upright or lying: the same."""
        count: int = self._processor.get_number_of_image_patches(size[1], size[0])
        return count

    def nbytes(self, patches: int, form: PixelForm) -> int:
        """Bytes of that many patches of a picture."""
        values: int = 3 * self._processor.patch_size**2
        times: int = 1 if form == "uint8" else 4 * self._processor.temporal_patch_size
        return patches * values * times

    def cut(self, image: Image.Image, form: PixelForm) -> tuple[Values, Grid]:
        """An RGB image as patches (see :mod:`coatcheck.pixels`); compact values are still to be made uint8."""
        compact = {"do_rescale": False, "do_normalize": False, "temporal_patch_size": 1} if form == "uint8" else {}
        made = self._processor(images=[image], return_tensors="np", **compact)
        t, h, w = (int(n) for n in made["image_grid_thw"][0])
        return made["pixel_values"], (t, h, w)


@dataclass(frozen=True)
class Picture:
    """One image of a request. ``digest``: its identity, of the encoded bytes under a key for how they are processed."""

    cutter: Cutter
    image: Image.Image  # opened, not decoded
    digest: bytes
    param: str  # where it stands in the request

    def want(self, form: PixelForm) -> Want:
        """The room it needs."""
        return Want(self.cutter.nbytes(self.cutter.patches(self.image.size), form), self.digest)

    def make(self, form: PixelForm) -> tuple[Values, Grid]:
        """Decodes and cuts it. Raises BadRequest. Once: the decoder is closed afterwards."""
        with self.image:
            return self.cutter.cut(self.cutter.decode(self.image, self.param), form)
