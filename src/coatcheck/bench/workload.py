"""The seeded workload: the same requests for every strategy and every round."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from coatcheck.bench.config import BenchConfig
from coatcheck.engine.checkpoint import read_config
from coatcheck.errors import ConfigError
from coatcheck.messages import Arrived, Item, Sampling, Tensor
from coatcheck.wire import Buffer

SHIFT = 4096  # bytes by which one request's payload lies after its predecessor's
QUESTION = "Describe the image."
MODEL_NAME = "bench"  # as the server under measurement is told to call it


@dataclass(frozen=True)
class Geometry:
    """One image as the model's processor would cut it."""

    grid: tuple[int, int, int]  # (t, h, w) in patches
    width: int  # values per patch
    tokens: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.grid[1] * self.grid[2], self.width

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * 4


class TensorWorkload:
    """Requests as the front end would send them, pixels drawn from a seed.

    All payloads are different windows into one buffer, so that any number of requests takes the memory of one.
    """

    def __init__(self, config: BenchConfig) -> None:
        self._config = config
        self._model = read_config(config.model)
        self.image = _geometry(config, self._model)
        values = (self.payload_bytes + config.requests * SHIFT) // 4
        pixels = np.random.default_rng(config.seed).standard_normal(values, dtype=np.float32)
        self._pixels = pixels.data.cast("B")

    @property
    def payload_bytes(self) -> int:
        """Of one request."""
        return self.image.nbytes * self._config.images_per_request

    @cached_property
    def prompt(self) -> tuple[tuple[int, ...], tuple[Item, ...]]:
        """Ids and items, the same for all requests but for the first text token (:meth:`request`)."""
        rng = np.random.default_rng((self._config.seed, 1))
        ids = rng.integers(0, self._model["vision_start_token_id"], self._config.text_tokens).tolist()
        items = []
        for index in range(self._config.images_per_request):
            ids.append(self._model["vision_start_token_id"])
            items.append(Item(Tensor(index, self.image.shape, "float32"), self.image.grid, len(ids), self.image.tokens))
            ids += [self._model["image_token_id"]] * self.image.tokens
            ids.append(self._model["vision_end_token_id"])
        return tuple(ids), tuple(items)

    def request(self, index: int, name: str, strategy: str, verify: bool) -> tuple[Arrived, list[Buffer]]:
        """Request ``index`` of the workload."""
        ids, items = self.prompt
        first = index % self._model["vision_start_token_id"]
        start, size = index * SHIFT, self.image.nbytes
        frames: list[Buffer] = [self._pixels[start + at * size : start + (at + 1) * size] for at in range(len(items))]
        return Arrived(name, strategy, (first, *ids[1:]), items, Sampling(self._config.output_tokens), verify), frames


def _geometry(config: BenchConfig, model: dict[str, Any]) -> Geometry:
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
    values = model["vision_config"].get("in_channels", 3) * model["vision_config"]["temporal_patch_size"] * patch**2
    h, w = height // patch, width // patch
    return Geometry((1, h, w), values, h * w // merge**2)


def http_bodies(config: BenchConfig) -> list[bytes]:
    """The requests' bodies for the OpenAI API, streaming. Each has pictures of its own: smooth noise, as JPEG."""
    return [_body(config, index) for index in range(config.requests)]


def _body(config: BenchConfig, index: int) -> bytes:
    rng = np.random.default_rng((config.seed, index))
    content: list[dict[str, Any]] = []
    for _ in range(config.images_per_request):
        buffer = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        coarse.resize(config.size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
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
