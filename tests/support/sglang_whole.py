"""Compares what mode ``whole`` makes of a request with what SGLang's own processor makes of it, on the CPU.

``python -m tests.support.sglang_whole MODEL_TYPE BACKEND`` with SGLang's interpreter: prints, as JSON, how many
requests of each kind were equal; ends with an assertion for the first that is not. Equal are ids, spans, positions,
grids, and every bit of the features; and for media that cannot be used, the exception.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import http.server
import io
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from coatcheck.integrations.sglang.arena_owner import ArenaOwner
from coatcheck.integrations.sglang.compact import Stored
from coatcheck.integrations.sglang.pace import Pace
from coatcheck.integrations.sglang.whole import Whole
from training.evaluate import DEFAULT_MODEL

ARENA = 64 << 20
START_S = 120.0
WORDS = [
    "Describe",
    "  the picture",
    "\n\n",
    "<|im_start|>user\n",
    "<|im_end|>",
    "größer",
    "図を",
    "🙂",
    " 12,5",
    "<a>",
    "\t",
]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def processor(model_type: str, backend: str) -> Any:
    """SGLang's, as its tokenizer's process makes it; the default model's files, called a model of that type."""
    from sglang.srt import runtime_context
    from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.hf_transformers_utils import get_processor
    from transformers import AutoConfig

    arguments = ServerArgs(
        model_path=str(DEFAULT_MODEL),
        device="cpu",
        dtype="float32",
        attention_backend="torch_native",
        mm_attention_backend="sdpa",
        image_processor_backend=backend,
    )
    runtime_context.publish(arguments, role="tokenizer")
    config = AutoConfig.from_pretrained(str(DEFAULT_MODEL))
    config.model_type = model_type
    own = get_processor(str(DEFAULT_MODEL), image_processor_backend=backend)
    return QwenVLImageProcessor(config, arguments, own, "default")


def noise(rng: np.random.Generator, size: tuple[int, int], channels: int) -> np.ndarray[Any, Any]:
    """Coarse and fine, so that resizing has something to do."""
    coarse = rng.integers(0, 256, (size[1] // 16 + 1, size[0] // 16 + 1, channels), dtype=np.uint8)
    fine = rng.integers(0, 40, (size[1], size[0], channels), dtype=np.uint8)
    return coarse.repeat(16, 0).repeat(16, 1)[: size[1], : size[0]] // 2 + fine


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encoded."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures(rng: np.random.Generator, size: tuple[int, int]) -> dict[str, bytes]:
    """One of each format that SGLang reads."""
    rgb = Image.fromarray(noise(rng, size, 3))
    rgba = Image.fromarray(noise(rng, size, 4), "RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    clear = rgb.quantize(32)
    clear.info["transparency"] = 3
    deep = Image.fromarray(rng.integers(0, 65536, (size[1], size[0]), dtype=np.uint16))
    return {
        "png": saved(rgb, "PNG"),
        "png alpha": saved(rgba, "PNG"),
        "png grey alpha": saved(rgba.convert("LA"), "PNG"),
        "png palette": saved(rgb.quantize(64), "PNG"),
        "png palette, transparent": saved(clear, "PNG", transparency=3),
        "png grey": saved(rgb.convert("L"), "PNG"),
        "png 1 bit": saved(rgb.convert("1"), "PNG"),
        "png 16 bit": saved(deep, "PNG"),
        "jpeg": saved(rgb, "JPEG", quality=90),
        "jpeg progressive": saved(rgb, "JPEG", progressive=True),
        "jpeg grey": saved(rgb.convert("L"), "JPEG"),
        "jpeg cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "jpeg exif": saved(rgb, "JPEG", exif=turned),
        "webp": saved(rgb, "WEBP"),
        "webp alpha": saved(rgba, "WEBP", lossless=True),
        "gif": saved(rgb, "GIF"),
        "gif animated": saved(rgb, "GIF", save_all=True, append_images=[rgb.transpose(Image.Transpose.ROTATE_180)]),
        "bmp": saved(rgb, "BMP"),
        "tiff": saved(rgb, "TIFF"),
    }


@contextmanager
def site(directory: Path) -> Iterator[str]:
    """Its files by HTTP, on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Comparison:
    """Asks both ways, and counts."""

    def __init__(self, own: Any, owner: ArenaOwner) -> None:
        self.original: Callable[..., Any] = own.process_mm_data_async
        self.equal = Counter[str]()
        self.how = Counter[str]()
        self.whole = Whole(own, owner, 0, 1)
        self.whole.wrap(self._taken)
        self.ours: Callable[..., Any] = own.process_mm_data_async
        self._tokenizer = own._tokenizer

    def _taken(self, how: str) -> None:
        self.how[how] += 1

    async def until_ready(self, image: bytes) -> None:
        """Workers take seconds to start; until then SGLang's own way is taken."""
        deadline = time.monotonic() + START_S
        while not self.how["whole"]:
            assert time.monotonic() < deadline, self.how
            await self.ours([image], IMAGE, request())
            await asyncio.sleep(0.2)
        self.how.clear()

    async def same(self, kind: str, images: list[Any], prompt: Any, how: str = "whole", **more: Any) -> Any:
        """Both ways give the same output, or the same exception; ours went that way. ``more``: of the request."""
        before = self.how[how]
        asked = request(**more)
        theirs = await _result(self.original, images, prompt, asked)
        ours = await _result(self.ours, images, prompt, asked)
        assert self.how[how] == before + 1, (kind, how, self.how)
        if isinstance(theirs, Exception):
            assert _said(ours) == _said(theirs), (kind, theirs, ours)
        else:
            _compare(kind, theirs, ours)
        self.equal[kind] += 1
        return ours


def request(**more: Any) -> Any:
    """What SGLang's processor looks at of one."""
    return SimpleNamespace(**{"video_data": None, "audio_data": None, "rid": "r", "mm_content_hashes": None, **more})


async def _result(process: Callable[..., Any], images: list[Any], prompt: Any, asked: Any) -> Any:
    try:
        return await process(list(images), prompt, asked, max_req_input_len=8192)
    except Exception as error:
        return error


def _said(error: Exception) -> tuple[type, str]:
    """Without addresses of objects."""
    return type(error), re.sub(r"0x[0-9a-f]+", "", str(error))


def _compare(kind: str, theirs: Any, ours: Any) -> None:
    assert list(ours.input_ids) == list(theirs.input_ids), kind
    for name in ("im_start_id", "im_end_id", "im_token_id", "video_token_id", "audio_token_id", "token_type_ids"):
        assert getattr(ours, name) == getattr(theirs, name), (kind, name)
    for name in ("mrope_positions", "mrope_position_delta"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert one.dtype == other.dtype and torch.equal(one, other), (kind, name, one.shape, other.shape)
    assert len(ours.mm_items) == len(theirs.mm_items), kind
    for one, other in zip(ours.mm_items, theirs.mm_items, strict=True):
        assert (one.modality, one.format) == (other.modality, other.format), kind
        assert list(map(tuple, one.offsets)) == list(map(tuple, other.offsets)), kind
        assert one.model_specific_data.keys() == other.model_specific_data.keys(), kind
        assert torch.equal(one.image_grid_thw, other.image_grid_thw), kind
        feature = one.feature.wide() if isinstance(one.feature, Stored) else one.feature
        assert feature.dtype == other.feature.dtype and torch.equal(feature, other.feature), kind


async def compare(compared: Comparison, directory: Path, url: str) -> None:
    """All there is to compare."""
    rng, choose = np.random.default_rng(1), random.Random(1)
    sizes = [(448, 448), (1024, 1024), (100, 30), (29, 57), (640, 480), (333, 777), (1400, 900)]
    formats = pictures(rng, (320, 240))
    await compared.until_ready(formats["png"])
    for name, data in formats.items():
        await compared.same(f"format {name}", [data], f"{IMAGE}What?")
    for size in sizes:
        await compared.same("size", [saved(Image.fromarray(noise(rng, size, 3)), "PNG")], f"{IMAGE}What?")
    several = [saved(Image.fromarray(noise(rng, choose.choice(sizes[2:]), 3)), "JPEG") for _ in range(4)]
    for count in (1, 2, 3, 4):
        for _ in range(6):
            parts = [choose.choice(WORDS) for _ in range(choose.randrange(12))] + [IMAGE] * count
            choose.shuffle(parts)
            prompt = "".join(parts)
            await compared.same("prompt", several[:count], prompt)
            await compared.same("prompt of ids", several[:count], compared._tokenizer.encode(prompt))
    await _sources(compared, directory, url, several)
    await _identities(compared, several)
    await _left_to_sglang(compared, several)
    await _left_out(compared, several[0])


async def _sources(compared: Comparison, directory: Path, url: str, images: list[bytes]) -> None:
    from sglang.srt.utils import ImageData

    path = directory / "one.jpg"
    path.write_bytes(images[0])
    text = base64.b64encode(images[0]).decode()
    png = saved(Image.open(io.BytesIO(images[0])), "PNG")
    # SGLang 0.5.23 takes base64 that begins with a slash, as every JPEG's does, for the path of a file.
    await compared.same("source base64 of a JPEG", [text], IMAGE, how="refused")
    for kind, source in {
        "bytes": images[0],
        "base64": base64.b64encode(png).decode(),
        "data URL": f"data:image/jpeg;base64,{text}",
        "path": str(path),
        "http URL": f"{url}/one.jpg",
        "ImageData": ImageData(url=f"data:image/jpeg;base64,{text}", detail="auto"),
    }.items():
        await compared.same(f"source {kind}", [source, images[1]], f"a{IMAGE}b{IMAGE}c")


async def _identities(compared: Comparison, images: list[bytes]) -> None:
    """The same bytes have one identity, whatever the prompt; others have another."""
    first = await compared.same("identity", [images[0], images[1], images[0]], f"{IMAGE}{IMAGE}{IMAGE}")
    again = await compared.same("identity", [images[0]], f"another prompt {IMAGE}")
    a, b, c = (item.hash for item in first.mm_items)
    assert a == c == again.mm_items[0].hash != b
    assert all(item.pad_value is not None for item in first.mm_items)
    places = {item.feature.handle.offset for item in (*first.mm_items, *again.mm_items)}
    assert len(places) == 2, "one block each"


async def _left_to_sglang(compared: Comparison, images: list[bytes]) -> None:
    """What is not taken is as if we were not there, errors too."""
    from sglang.srt.utils import ImageData

    text = base64.b64encode(images[0]).decode()
    broken = {
        "no image": b"no image at all",
        "nothing": b"",
        "truncated jpeg": images[0][: len(images[0]) // 2],
        "truncated png": saved(Image.new("RGB", (200, 200)), "PNG")[:-40],
        "broken base64": text[:-3] + "*",
        "broken data URL": "data:image/png;base64,@@@",
        "base64 with too much padding": f"data:image/png;base64,{base64.b64encode(bytes(6)).decode()}=",
        "too long and thin": saved(Image.new("RGB", (3000, 10)), "PNG"),
        "missing file": "/nowhere/one.png",
    }
    for name, source in broken.items():
        await compared.same(f"broken: {name}", [source], f"{IMAGE}?", how="refused")
    await compared.same("broken: one of two", [images[0], b"junk"], f"{IMAGE}{IMAGE}", how="refused")
    await compared.same("prompt without a placeholder", [images[0]], "no placeholder", how="prompt")
    await compared.same("prompt with one too many", [images[0]], f"{IMAGE}{IMAGE}", how="prompt")
    video = "<|video_pad|>"
    await compared.same("prompt with a video's", images[:2], f"{IMAGE} <|image_pad|> {video}", how="prompt")
    bare = compared._tokenizer.encode("<|image_pad|> first")
    await compared.same("prompt that begins with a placeholder", [images[0]], bare, how="prompt")
    wrong = ["sha256:" + "0" * 64]
    await compared.same("a hash of the client's", [images[0]], IMAGE, how="settings", mm_content_hashes=wrong)
    await compared.same("Pillow's image", [Image.new("RGB", (64, 64), "red")], IMAGE, how="media")
    settings = ImageData(url=text, max_long_side_pixel=64)
    await compared.same("settings of an image", [settings], IMAGE, how="settings")


async def _left_out(compared: Comparison, image: bytes) -> None:
    """By the share, and while nothing is carried."""
    whole = compared.whole
    whole._share = 0.0
    await compared.same("not in the share", [image], IMAGE, how="not in the share")
    whole._share = 1.0
    whole._owner._missing.add(0)
    await compared.same("breaker open", [image], IMAGE, how="breaker open")
    whole._owner._missing.clear()
    await compared.same("again", [image], IMAGE)


async def main(model_type: str, backend: str) -> dict[str, int]:
    """What was equal."""
    owner = ArenaOwner(ARENA, [], Pace(1e-9))
    try:
        with tempfile.TemporaryDirectory() as directory, site(Path(directory)) as url:
            compared = Comparison(processor(model_type, backend), owner)
            await compare(compared, Path(directory), url)
            return dict(compared.equal)
    finally:
        owner.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
