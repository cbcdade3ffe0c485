"""Requests as the front end would send them, with pixels drawn from a seed, and what is expected of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from coatcheck.arena.handle import PixelForm
from coatcheck.engine.model.positions import ModelPositions
from coatcheck.engine.records import Arrived, Sampling
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.engine.strategies.materialize import Materialize
from coatcheck.intake.records import Item, Tensor
from coatcheck.pixels import PixelTable, image_processor


@dataclass(frozen=True)
class Request:
    """What is sent: the record and its frames."""

    arrived: Arrived
    frames: list[memoryview]


class Workload:
    """``grids`` below, in patches, height and width even: (height, width) of an image, of a video with time first."""

    SECONDS = 0.75  # from one temporal patch of a video to the next

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
        grids: Sequence[tuple[int, ...]] = (),
        text: int = 5,
        seed: int = 0,
        sampling: Sampling | None = None,
        form: PixelForm = "float32",
    ) -> Request:
        """``text``: tokens of text around each item; ``form``: of the pixels, the same ones in both."""
        rng = np.random.default_rng((seed, text, *[edge for grid in grids for edge in grid]))
        ids: list[int] = []
        items: list[Item] = []
        frames = []

        def words(count: int) -> None:
            ids.extend(int(token) for token in rng.integers(20, 250, count))

        for index, (*time, height, width) in enumerate(grids):
            words(text)
            t, seconds, token = (
                (time[0], self.SECONDS, self.config.video_token_id) if time else (1, None, self.config.image_token_id)
            )
            patches = t * height * width
            count = patches // self._merge**2
            compact = rng.integers(0, 256, (patches, self._table.compact_widths[bool(time)]), dtype=np.uint8)
            pixels = compact if form == "uint8" else self._table.widen(torch.from_numpy(compact)).numpy()
            ids.append(self.config.vision_start_token_id)
            tensor = Tensor(index, pixels.shape, form)
            start = len(ids) + sum(item.count - 1 for item in items)
            items.append(Item(tensor, (t, height, width), start, count, seconds=seconds))
            ids.append(token)
            ids.append(self.config.vision_end_token_id)
            frames.append(pixels.data.cast("B"))
        words(text)
        return Request(Arrived(name, strategy, tuple(ids), tuple(items), sampling or Sampling(6), verify=True), frames)

    def digest(self, request: Request) -> str:
        """Of the inputs that every rank must consume."""
        return self.materialized(request).digest()

    def materialized(self, request: Request) -> MultimodalInputs:
        """What every rank must consume."""
        materialize = Materialize(
            ModelPositions(self.config),
            self.config.image_token_id,
            self.config.video_token_id,
            self._merge,
            self._width,
            table=self._table,
        )
        return materialize(request.arrived, request.frames)

    @torch.inference_mode()
    def generate(self, request: Request) -> list[int]:
        """Greedy tokens of ``model.generate()`` run alone."""
        arrived = request.arrived
        ids = self.materialized(request).ids[None]
        more: dict[str, Any] = {}
        if arrived.items:
            kinds = (ids == self.config.image_token_id).int() + (ids == self.config.video_token_id).int() * 2
            more = {"mm_token_type_ids": kinds}
            for videos, values, grid in (
                (False, "pixel_values", "image_grid_thw"),
                (True, "pixel_values_videos", "video_grid_thw"),
            ):
                items = [item for item in arrived.items if (item.seconds is not None) == videos]
                if items:
                    frames = [request.frames[item.pixels.frame] for item in items if isinstance(item.pixels, Tensor)]
                    pixels = [np.frombuffer(frame, np.float32).reshape(-1, self._width) for frame in frames]
                    more[values] = torch.from_numpy(np.concatenate(pixels))
                    more[grid] = torch.tensor([item.grid for item in items])
                    if videos:
                        more["second_per_grid_ts"] = torch.tensor([item.seconds for item in items])
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
