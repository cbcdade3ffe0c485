"""Options of ``coatcheck bench engine``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from coatcheck.arena.handle import PixelForm
from coatcheck.engine.model.config import DEFAULT_MODEL, EngineConfig
from coatcheck.errors import ConfigError

INPUTS = ("http", "tensors")
MADE = "made"  # --video: the benchmark's own clip


def parse_image(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` in pixels. Raises ConfigError."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise ConfigError(f"--image: {text!r} is not WIDTHxHEIGHT in pixels, such as 448x448")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class BenchConfig:
    """See the comments; an impossible value raises ConfigError naming the option."""

    strategies: tuple[str, ...]  # canonical names
    model: Path = DEFAULT_MODEL
    tp: int = 2
    concurrency: int = 16  # requests under way at once: a closed loop
    requests: int = 64  # in a round, of each strategy
    image: str = "448x448"
    images_per_request: int = 1  # 0: text alone, the limit that stalls are to be seen against
    video: str = ""  # a file, or "made": each request has this one video and no image; "": none
    text_tokens: int = 16  # of each prompt, beside images and video; input "tensors" only
    output_tokens: int = 16
    input: str = "tensors"  # http: a whole server, images as JPEG; tensors: prebuilt, straight to the ranks
    pixels: PixelForm = "uint8"  # under strategies with handles; the others carry float32
    arena_mib: int = 1024  # for payloads, under strategies with handles
    rounds: int = 5
    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if not self.strategies:
            raise ConfigError("--strategies: at least one is needed")
        if self.input not in INPUTS:
            raise ConfigError(f"--input: {self.input!r} is not one of {', '.join(INPUTS)}")
        for name in ("tp", "concurrency", "requests", "text_tokens", "output_tokens", "arena_mib", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)} is less than 1")
        if self.pixels not in get_args(PixelForm):
            raise ConfigError(f"--pixels: {self.pixels!r} is not one of {', '.join(get_args(PixelForm))}")
        if self.images_per_request < 0:
            raise ConfigError(f"--images-per-request: {self.images_per_request} is less than 0")
        if self.video and self.images_per_request:
            raise ConfigError("--video: requests have one video and no image; --images-per-request must be 0")
        if self.video not in ("", MADE) and not Path(self.video).is_file():
            raise ConfigError(f"--video: there is no file {self.video}")
        parse_image(self.image)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of each image, in pixels."""
        return parse_image(self.image)
