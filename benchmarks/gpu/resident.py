"""An oracle, as a plugin of SGLang's: the same model work, preprocessing done once, pixels on every rank already.

What it serves is wrong on purpose: every picture of a size is answered as if it were the first one, from noise. It
bounds what any input path could bring, and is registered only where ``COATCHECK_BENCH_RESIDENT=1``.

In the tokenizer's process a request is a copy of the first one with pictures of these sizes, so that no picture is
decoded. SGLang's own warm-up sends a picture of 32 x 32 pixels: a template by number of pictures, not by their sizes,
would make sixteen image tokens of all that follow. Every request gets an identity of its own: neither the prefix
cache nor the embedding cache knows it. On the ranks the vision tower runs on pixels that lie on the device, for every
picture; how many patches it was given is counted in ``coatcheck_bench_resident_patches_total``.
"""

from __future__ import annotations

import base64
import copy
import io
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

SWITCH = "COATCHECK_BENCH_RESIDENT"
HEADER_CHARS = 1 << 14  # of base64: a picture's size stands in its beginning
PATCH_VALUES = 1176  # 2 frames of 14 x 14 pixels of 3 colours
_PROCESSOR = "sglang.srt.multimodal.processors.qwen_vl.QwenVLImageProcessor.process_mm_data_async"
_FEATURES = "sglang.srt.models.qwen2_5_vl.Qwen2_5_VLForConditionalGeneration.get_image_feature"


def register() -> None:
    """SGLang calls it in every one of its processes."""
    if os.environ.get(SWITCH) != "1":
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_PROCESSOR, process, HookType.AROUND)
    HookRegistry.register(_FEATURES, features, HookType.AROUND)


Sizes = tuple[tuple[int, int], ...]  # of a request's pictures, in pixels
_templates: dict[Sizes, Any] = {}  # MultimodalProcessorOutput


async def process(original: Callable[..., Awaitable[Any]], self: Any, image_data: Any, *rest: Any, **named: Any) -> Any:
    """Around the processor's: a template's copy, under an identity that nothing else has."""
    if not image_data:
        return await original(self, image_data, *rest, **named)
    sizes = picture_sizes(image_data)
    if sizes not in _templates:
        _templates[sizes] = stripped(await original(self, image_data, *rest, **named))
    return renewed(_templates[sizes])


def picture_sizes(pictures: Sequence[Any]) -> Sizes:
    """From their headers. ``pictures``: data URLs, as they are or as SGLang's ImageData."""
    from PIL import Image

    sizes = []
    for picture in pictures:
        url = getattr(picture, "url", picture)
        head = url.split(",", 1)[1][:HEADER_CHARS]
        with Image.open(io.BytesIO(base64.b64decode(head[: len(head) // 4 * 4]))) as opened:
            sizes.append(opened.size)
    return tuple(sizes)


def stripped(output: Any) -> Any:
    """The output with a few bytes in place of its pixels."""
    import torch

    for item in output.mm_items:
        item.feature = torch.zeros(1, 1)
    return output


def renewed(template: Any) -> Any:
    """A copy whose items, and the ids padded with their values, are new to every cache."""
    output = copy.copy(template)
    output.mm_items = []
    for item in template.mm_items:
        item = copy.copy(item)
        item.model_specific_data = dict(item.model_specific_data)
        item.set_identity(os.urandom(32))
        output.mm_items.append(item)
    output.padded_input_ids = type(output).build_padded_input_ids(output.input_ids, output.mm_items)
    return output


_pixels: dict[int, Any] = {}  # by number of patches, on this rank's device


def features(original: Callable[..., Any], self: Any, items: Sequence[Any]) -> Any:
    """Around the model's: it is given the pixels that lie here; they are taken away again before SGLang moves them."""
    import torch

    carried = [item.feature for item in items]
    encoded = 0
    for item in items:
        count = int(item.image_grid_thw.reshape(-1, 3).prod(-1).sum())
        if count not in _pixels:
            device = next(self.visual.parameters()).device
            _pixels[count] = torch.randn(count, PATCH_VALUES, device=device)
        item.feature = _pixels[count]
        encoded += count
    try:
        return original(self, items)
    finally:
        for item, feature in zip(items, carried, strict=True):
            item.feature = feature
        _count(encoded)


_counter: list[Any] = []  # at most one


def _count(patches: int) -> None:
    """On the entry rank, where SGLang has metrics. prometheus_client may be imported only after SGLang prepared it."""
    import torch

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ or torch.distributed.get_rank() != 0:
        return
    if not _counter:
        from prometheus_client import Counter

        _counter.append(Counter("coatcheck_bench_resident_patches", "Patches given to the vision tower"))
    _counter[0].inc(patches)
