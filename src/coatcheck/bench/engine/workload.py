"""The seeded workload: the same requests for every strategy and every round."""

from __future__ import annotations

import base64
import io
import json
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from coatcheck.arena.handle import PixelForm, nbytes
from coatcheck.bench.engine.config import MADE, BenchConfig
from coatcheck.bench.support import clip, noise
from coatcheck.engine.model_files import read_config
from coatcheck.engine.records import Arrived, Sampling
from coatcheck.engine.strategies.table import is_compact
from coatcheck.errors import BadRequest, ConfigError
from coatcheck.intake.limits import MediaLimits
from coatcheck.intake.media.processor import MediaProcessor
from coatcheck.intake.media.source import Source
from coatcheck.intake.records import Item, Tensor, prompt_tokens
from coatcheck.pixels import PixelTable, image_processor
from coatcheck.wire import Buffer

SHIFT = 7  # patches by which one request's payload lies after its predecessor's: more than a page in either form
QUESTION = "Describe the image."  # of a video too: the default model knows no other
MARK = b"coatcheck"  # see fresh(); 9 bytes are 12 characters of base64
MODEL_NAME = "bench"  # as the server under measurement is told to call it


@dataclass(frozen=True)
class Geometry:
    """One image or video as the model's processor would cut it."""

    grid: tuple[int, int, int]  # (t, h, w) in patches
    tokens: int
    seconds: float | None = None  # a video's, as in Item

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


class TensorWorkload:
    """Requests as the front end would send them, pixels drawn from a seed, or the front end's own of a video.

    All payloads are different windows into one buffer, so that any number of requests takes the memory of one. Compact
    and wide pixels are the same ones: strategies differ in what they carry, not in what the model gets.
    """

    def __init__(self, config: BenchConfig) -> None:
        self._config = config
        self._model = read_config(config.model)
        self._table = PixelTable.of(image_processor(config.model))
        self._items = 1 if config.video else config.images_per_request
        self.clip = b""  # the video, encoded
        if config.video:
            self.clip = clip.make(config.seed) if config.video == MADE else Path(config.video).read_bytes()
            self.item, values = _film(config, self.clip)
            rows = self.item.patches + config.requests * SHIFT
            self._compact: NDArray[np.uint8] = np.resize(values, (rows, values.shape[1]))  # from the start again
        else:
            self.item = _geometry(config)
            rows = self.item.patches * self._items + config.requests * SHIFT
            width = self._table.compact_widths[0]
            self._compact = np.random.default_rng(config.seed).integers(0, 256, (rows, width), dtype=np.uint8)

    @cached_property
    def _wide(self) -> NDArray[np.float32]:
        wide: NDArray[np.float32] = self._table.widen(torch.from_numpy(self._compact)).numpy()
        return wide

    def form(self, strategy: str) -> PixelForm:
        """How pixels travel under a strategy: the contenders without handles carry what SGLang sends."""
        return self._config.pixels if is_compact(strategy) else "float32"

    def payload_bytes(self, strategy: str) -> int:
        """Of one request, as the ranks receive it."""
        return sum(nbytes(item.pixels) for item in self.prompt(self.form(strategy))[1])

    @property
    def prompt_tokens(self) -> int:
        """Of one request."""
        return prompt_tokens(*self.prompt("float32"))

    @cache  # noqa: B019 - lives as long as the process
    def prompt(self, form: PixelForm) -> tuple[tuple[int, ...], tuple[Item, ...]]:
        """Ids and items, the same for all requests but for the first text token (:meth:`request`)."""
        width = self._compact.shape[1] if form == "uint8" else self._table.width
        token = self._model["image_token_id" if self.item.seconds is None else "video_token_id"]
        rng = np.random.default_rng((self._config.seed, 1))
        ids = rng.integers(0, self._model["vision_start_token_id"], self._config.text_tokens).tolist()
        items = []
        for index in range(self._items):
            ids.append(self._model["vision_start_token_id"])
            pixels = Tensor(index, (self.item.patches, width), form)
            start = len(ids) + index * (self.item.tokens - 1)
            items.append(Item(pixels, self.item.grid, start, self.item.tokens, seconds=self.item.seconds))
            ids.append(token)
            ids.append(self._model["vision_end_token_id"])
        return tuple(ids), tuple(items)

    def request(self, index: int, name: str, strategy: str, verify: bool) -> tuple[Arrived, list[Buffer]]:
        """Request ``index`` of the workload."""
        form = self.form(strategy)
        ids, items = self.prompt(form)
        first = index % self._model["vision_start_token_id"]
        pixels = self._compact if form == "uint8" else self._wide
        row, payloads = pixels[0].nbytes, pixels.data.cast("B")
        starts = [index * SHIFT + at * self.item.patches for at in range(len(items))]
        frames: list[Buffer] = [payloads[start * row : (start + self.item.patches) * row] for start in starts]
        return Arrived(name, strategy, (first, *ids[1:]), items, Sampling(self._config.output_tokens), verify), frames


def _geometry(config: BenchConfig) -> Geometry:
    path = config.model / "preprocessor_config.json"
    try:
        processor = json.loads(path.read_text())
        patch, merge = processor["patch_size"], processor["merge_size"]
        size = processor.get("size", {})
        least = processor.get("min_pixels") or size["shortest_edge"]
        most = processor.get("max_pixels") or size["longest_edge"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--model: {path} cannot be used: {error!r}") from error
    width, height = config.size
    try:
        height, width = smart_resize(height, width, patch * merge, least, most)
    except ValueError as error:
        raise ConfigError(f"--image: {config.image}: {error}") from error
    h, w = height // patch, width // patch
    return Geometry((1, h, w), h * w // merge**2)


def _film(config: BenchConfig, data: bytes) -> tuple[Geometry, NDArray[np.uint8]]:
    """The video as the front end cuts it, and its compact pixels."""
    processor = MediaProcessor(config.model, MediaLimits())
    try:
        film = processor.open_bytes(Source("video", "--video", ""), data)
        values, grid = film.values("uint8")
    except BadRequest as error:
        raise ConfigError(f"--video: {error}") from error
    return Geometry(grid, processor.tokens(film.patches), film.seconds), values.astype(np.uint8, copy=False)


def http_bodies(config: BenchConfig, video: bytes) -> list[bytes]:
    """The requests' bodies for the OpenAI API, streaming, to be sent through :func:`fresh`.

    Each has pictures of its own: smooth noise, as JPEG. Or it has ``video``.
    """
    return [_body(config, video, index) for index in range(config.requests)]


def fresh(body: bytes, number: int) -> bytes:
    """The request with this number behind each image and video, where decoders do not look.

    So that its content is new to the server: what it has stored it would neither decode nor write again.
    """
    return body.replace(base64.b64encode(MARK), base64.b64encode(number.to_bytes(len(MARK))))


def _marked(data: bytes) -> bytes:
    """With MARK behind it, which decoders skip: in a Void element (WebM), in a free box (MP4), or just so (JPEG).

    At a multiple of 3, so that it can be told in base64.
    """
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        pad = bytes(-(len(data) + 2) % 3)
        return data + struct.pack(">BB", 0xEC, 0x80 + len(pad) + len(MARK)) + pad + MARK
    if data[4:8] == b"ftyp":
        pad = bytes(-(len(data) + 8) % 3)
        return data + struct.pack(">I4s", 8 + len(pad) + len(MARK), b"free") + pad + MARK
    return data + bytes(-len(data) % 3) + MARK


def _body(config: BenchConfig, video: bytes, index: int) -> bytes:
    rng = np.random.default_rng((config.seed, index))
    content: list[dict[str, Any]] = []
    for _ in range(config.images_per_request):
        buffer = io.BytesIO()
        noise.smooth(rng, config.size).save(buffer, "JPEG", quality=noise.QUALITY)
        url = "data:image/jpeg;base64," + base64.b64encode(_marked(buffer.getvalue())).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    if config.video:
        url = "data:video/mp4;base64," + base64.b64encode(_marked(video)).decode()
        content.append({"type": "video_url", "video_url": {"url": url}})
    content.append({"type": "text", "text": QUESTION})
    return json.dumps(
        {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": config.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
