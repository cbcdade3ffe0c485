"""Requests as the front end would send them, with pixels drawn from a seed, and what is expected of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from coatcheck.engine.positions import ModelPositions
from coatcheck.messages import Arrived, Item, PixelForm, Sampling, Tensor
from coatcheck.pixels import PixelTable, image_processor
from coatcheck.strategies.materialize import Materialize


@dataclass(frozen=True)
class Request:
    """What is sent: the record and its frames."""

    arrived: Arrived
    frames: list[memoryview]


class Workload:
    """``grids`` below: (height, width) of each image in patches, both even."""

    def __init__(self, model: Path) -> None:
        self._path = model
        self.config: Any = AutoConfig.from_pretrained(model)
        vision = self.config.vision_config
        self._merge = vision.spatial_merge_size
        self._width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self._table = PixelTable.of(image_processor(model))
        self._reference: Any = None

    @property
    def reference(self) -> Any:
        """The model itself, alone, unsharded."""
        if self._reference is None:
            self._reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(self._path, dtype=torch.float32)
            self._reference.eval()
        return self._reference

    def request(
        self,
        name: str,
        strategy: str,
        grids: Sequence[tuple[int, int]] = (),
        text: int = 5,
        seed: int = 0,
        sampling: Sampling | None = None,
        form: PixelForm = "float32",
    ) -> Request:
        """``text``: tokens of text around each image; ``form``: of the pixels, the same ones in both."""
        rng = np.random.default_rng((seed, text, *[edge for grid in grids for edge in grid]))
        ids: list[int] = []
        items = []
        frames = []

        def words(count: int) -> None:
            ids.extend(int(token) for token in rng.integers(20, 250, count))

        for index, (height, width) in enumerate(grids):
            words(text)
            count = height * width // self._merge**2
            compact = rng.integers(0, 256, (height * width, self._table.compact_widths[0]), dtype=np.uint8)
            pixels = compact if form == "uint8" else self._table.widen(torch.from_numpy(compact)).numpy()
            ids.append(self.config.vision_start_token_id)
            items.append(Item(Tensor(index, pixels.shape, form), (1, height, width), len(ids), count))
            ids.extend([self.config.image_token_id] * count)
            ids.append(self.config.vision_end_token_id)
            frames.append(pixels.data.cast("B"))
        words(text)
        return Request(Arrived(name, strategy, tuple(ids), tuple(items), sampling or Sampling(6), verify=True), frames)

    def digest(self, request: Request) -> str:
        """Of the inputs that every rank must consume."""
        materialize = Materialize(
            ModelPositions(self.reference.model),
            self.config.image_token_id,
            self._merge,
            self._width,
            table=self._table,
        )
        return materialize(request.arrived, request.frames).digest()

    @torch.inference_mode()
    def generate(self, request: Request) -> list[int]:
        """Greedy tokens of ``model.generate()`` run alone."""
        arrived = request.arrived
        ids = torch.tensor([arrived.ids])
        more: dict[str, Any] = {}
        if arrived.items:
            pixels = [np.frombuffer(f, np.float32).reshape(-1, self._width) for f in request.frames]
            more = {
                "pixel_values": torch.from_numpy(np.concatenate(pixels)),
                "image_grid_thw": torch.tensor([item.grid for item in arrived.items]),
                "mm_token_type_ids": (ids == self.config.image_token_id).int(),
            }
        out = self.reference.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=arrived.sampling.max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **more,
        )
        tokens: list[int] = out[0, ids.shape[1] :].tolist()
        return tokens
