"""Encoded images and videos -> patches, in two steps: what the header tells, and the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import transformers
from blake3 import blake3
from PIL import Image

from coatcheck.arena.handle import PixelForm
from coatcheck.arena.queue import Want
from coatcheck.errors import BadRequest
from coatcheck.intake.limits import MediaLimits
from coatcheck.intake.media import images, videos
from coatcheck.intake.media.fetch import RemoteMedia
from coatcheck.intake.media.source import Source
from coatcheck.intake.records import Item, Slot, Stored
from coatcheck.intake.writer import PayloadWriter, Values
from coatcheck.pixels import PixelTable, image_processor

Grid = tuple[int, int, int]  # (t, h, w) in patches


class MediaProcessor:
    """The model's image processor. Raises ConfigError if the model directory has none that can be used."""

    def __init__(self, model_dir: Path, limits: MediaLimits) -> None:
        Image.MAX_IMAGE_PIXELS = None  # max_pixels holds instead, from each header
        self._processor: Any = image_processor(model_dir)
        self._limits = limits
        self._remote = RemoteMedia(limits)
        if limits.pixels == "uint8":
            PixelTable.read(model_dir).check(self._processor)  # else the ranks could not widen
        how = f"{transformers.__version__} {PIL.__version__} {self._processor.to_json_string()}"
        self._key = blake3(how.encode()).digest()  # the same bytes, processed otherwise, are another item
        self._video_key = blake3(f"{how} {videos.how(limits)}".encode()).digest()
        self.merge: int = self._processor.merge_size

    def open(self, source: Source) -> Medium:
        """The image or video behind a data: or http(s) URL, as little decoded as it takes to know its size.

        Raises BadRequest.
        """
        return self.open_bytes(source, self._loaded(source))

    def _loaded(self, source: Source) -> bytes:
        scheme = source.url[:6].lower()
        if scheme.startswith("data:"):
            return images.from_data_url(source)
        if scheme.startswith("http"):
            return self._remote.fetch(source)
        raise BadRequest(
            f"The {source.kind} must be given by a data: URL or an http(s) URL",
            param=source.param,
            code=f"invalid_{source.kind}_url",
        )

    def open_bytes(self, source: Source, data: bytes) -> Medium:
        """As ``open``, of encoded bytes that are here already."""
        param = source.param
        if source.kind == "image":
            image = images.opened(data, self._limits.max_pixels, param)
            return Medium(self, blake3(data, key=self._key).digest(), self.patches(image.size), param, image=image)
        video = videos.probe(data, self._limits, param)
        patches = len(video.indices) // videos.TEMPORAL_PATCH * self.patches(video.size, video.limits)
        return Medium(self, blake3(data, key=self._video_key).digest(), patches, param, video=video)

    def decode(self, image: Image.Image, param: str) -> Image.Image:
        """An opened image as RGB. Raises BadRequest."""
        return images.to_rgb(image, self._limits.max_pixels, param)

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

    def tokens(self, patches: int) -> int:
        """Of the prompt, that so many patches become."""
        return patches // self.merge**2

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
class Medium:
    """One image or video, opened. ``digest``: of the encoded bytes, under a key for how they are processed."""

    processor: MediaProcessor
    digest: bytes
    patches: int  # in space and time
    param: str  # where it stands in the request
    image: Image.Image | None = None  # opened, not decoded; else
    video: videos.Video | None = None

    @property
    def seconds(self) -> float | None:
        """A video's, from one temporal patch to the next."""
        return None if self.video is None else self.video.seconds

    def want(self, form: PixelForm) -> Want:
        """The room it needs."""
        frames = 1 if self.video is None else videos.TEMPORAL_PATCH
        return Want(self.processor.nbytes(self.patches, form, frames), self.digest)

    def item(self, slot: Slot | Stored | None, form: PixelForm, writer: PayloadWriter) -> Item:
        """Decodes, processes and writes it, unless it is there already. Raises BadRequest. Once: it is closed then.

        The item's place in the prompt (``start``) is for the caller to fill in.
        """
        if isinstance(slot, Stored):
            return slot.item
        values, grid = self.values(form)
        count = self.processor.tokens(grid[0] * grid[1] * grid[2])
        return Item(writer.write(slot, values, form), grid, 0, count, self.digest, self.seconds)

    def values(self, form: PixelForm) -> tuple[Values, Grid]:
        """(patches, values), and the grid. Whole numbers where ``form`` is uint8. Raises BadRequest."""
        if self.video is not None:
            return self.processor.cut_video(self.video, form)
        assert self.image is not None
        with self.image:
            return self.processor.cut(self.processor.decode(self.image, self.param), form)


def prepare(media: Sequence[Medium], writer: PayloadWriter) -> list[Item]:
    """Every medium as an item, its payload written where there is room for it. Raises BadRequest and NoRoom."""
    form = writer.job.form
    slots = writer.reserve([medium.want(form) for medium in media])
    return [medium.item(slot, form, writer) for medium, slot in zip(media, slots, strict=True)]
