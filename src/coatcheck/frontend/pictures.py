"""Encoded images and videos -> patches, in two steps: what the header tells, and the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
import transformers
from blake3 import blake3
from PIL import Image

from coatcheck.frontend import images, videos
from coatcheck.frontend.config import FrontendConfig
from coatcheck.frontend.desk import Values
from coatcheck.messages import PixelForm, Want
from coatcheck.pixels import PixelTable, image_processor

Grid = tuple[int, int, int]  # (t, h, w) in patches


class Cutter:
    """The model's image processor. Raises ConfigError if the model directory has none that can be used."""

    def __init__(self, config: FrontendConfig) -> None:
        self._processor: Any = image_processor(config.model_dir)
        self._config = config
        if config.pixels == "uint8":
            PixelTable.read(config.model_dir).check(self._processor)  # else the ranks could not widen
        how = f"{transformers.__version__} {PIL.__version__} {self._processor.to_json_string()}"
        self._key = blake3(how.encode()).digest()  # the same bytes, processed otherwise, are another item
        self._video_key = blake3(f"{how} {videos.how(config)}".encode()).digest()
        self.merge: int = self._processor.merge_size

    def open(self, data: bytes, param: str) -> Picture:
        """A picture of these bytes, nothing decoded yet. Raises BadRequest if its header tells that it cannot be."""
        image = images.opened(data, self._config.max_pixels, param)
        return Picture(self, image, blake3(data, key=self._key).digest(), param)

    def open_video(self, data: bytes, param: str) -> Film:
        """A video of these bytes, one frame of it decoded. Raises BadRequest if it cannot be used."""
        video = videos.probe(data, self._config, param)
        return Film(self, video, blake3(data, key=self._video_key).digest())

    def decode(self, image: Image.Image, param: str) -> Image.Image:
        """An opened image as RGB. Raises BadRequest."""
        return images.to_rgb(image, self._config.max_pixels, param)

    def patches(self, size: tuple[int, int], limits: tuple[int, int] | None = None) -> int:
        """Patches of an image of ``size`` (width, height), upright or lying: the same.

        ``limits``: least and most pixels, where they are not the model's for images.
        """
        given = {} if limits is None else {"min_pixels": limits[0], "max_pixels": limits[1]}
        count: int = self._processor.get_number_of_image_patches(size[1], size[0], given)
        return count

    def nbytes(self, patches: int, form: PixelForm, frames: int = 1) -> int:
        """Bytes of that many patches, each made of so many frames."""
        values: int = 3 * self._processor.patch_size**2
        times: int = frames if form == "uint8" else 4 * self._processor.temporal_patch_size
        return patches * values * times

    def cut(self, image: Image.Image, form: PixelForm) -> tuple[Values, Grid]:
        """An RGB image as patches (see :mod:`coatcheck.pixels`); compact values are still to be made uint8."""
        compact = {"do_rescale": False, "do_normalize": False, "temporal_patch_size": 1} if form == "uint8" else {}
        made = self._processor(images=[image], return_tensors="np", **compact)
        t, h, w = (int(n) for n in made["image_grid_thw"][0])
        return made["pixel_values"], (t, h, w)

    def cut_video(self, video: videos.Video, form: PixelForm) -> tuple[Values, Grid]:
        """Its frames as patches: the image processor's of each, those of two frames beside each other.

        Raises BadRequest.
        """
        least, most = video.limits
        options: dict[str, Any] = {"size": {"shortest_edge": least, "longest_edge": most}, "temporal_patch_size": 1}
        if form == "uint8":
            options |= {"do_rescale": False, "do_normalize": False}
        t = len(video.indices) // videos.TEMPORAL_PATCH
        values: Any = None
        h = w = 0
        for at, frame in enumerate(video.frames()):
            made = self._processor(images=[frame], return_tensors="np", **options)
            rows = made["pixel_values"].reshape(-1, 3, self._processor.patch_size**2)
            if at == 0:
                _, h, w = (int(n) for n in made["image_grid_thw"][0])
                values = np.empty((t, len(rows), 3, videos.TEMPORAL_PATCH, rows.shape[-1]), form)
            values[at // videos.TEMPORAL_PATCH, :, :, at % videos.TEMPORAL_PATCH] = rows  # uint8: whole, 0 to 255
        return values.reshape(t * h * w, -1), (t, h, w)


@dataclass(frozen=True)
class Picture:
    """One image of a request. ``digest``: its identity, of the encoded bytes under a key for how they are processed."""

    cutter: Cutter
    image: Image.Image  # opened, not decoded
    digest: bytes
    param: str  # where it stands in the request
    seconds: float | None = None  # a picture has none

    @property
    def patches(self) -> int:
        """As its header has it."""
        return self.cutter.patches(self.image.size)

    def want(self, form: PixelForm) -> Want:
        """The room it needs."""
        return Want(self.cutter.nbytes(self.patches, form), self.digest)

    def make(self, form: PixelForm) -> tuple[Values, Grid]:
        """Decodes and cuts it. Raises BadRequest. Once: the decoder is closed afterwards."""
        with self.image:
            return self.cutter.cut(self.cutter.decode(self.image, self.param), form)


@dataclass(frozen=True)
class Film:
    """One video of a request. ``digest``: as a picture's."""

    cutter: Cutter
    video: videos.Video
    digest: bytes

    @property
    def seconds(self) -> float:
        """From one temporal patch to the next."""
        return self.video.seconds

    @property
    def patches(self) -> int:
        """In space and time."""
        return (
            len(self.video.indices) // videos.TEMPORAL_PATCH * self.cutter.patches(self.video.size, self.video.limits)
        )

    def want(self, form: PixelForm) -> Want:
        """The room it needs."""
        return Want(self.cutter.nbytes(self.patches, form, videos.TEMPORAL_PATCH), self.digest)

    def make(self, form: PixelForm) -> tuple[Values, Grid]:
        """Decodes and cuts it. Raises BadRequest."""
        return self.cutter.cut_video(self.video, form)
