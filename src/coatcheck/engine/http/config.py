"""Options of the front end and its workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec

from coatcheck.arena.handle import PixelForm
from coatcheck.errors import ConfigError

MEBI = 1 << 20


@dataclass(frozen=True)
class FrontendConfig:
    """See the comments; an impossible value raises ConfigError naming the option. Times in seconds, sizes in bytes."""

    model_dir: Path  # local Hugging Face directory: config, tokenizer.json, chat template, preprocessor_config
    model_name: str  # the name clients give as ``model``
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    strategy: str = "auto"  # of requests that ask for none, at first; whether it exists the strategies check
    strategy_header: bool = False  # a request may ask for a strategy, and every answer says which was used
    verify: bool = False  # debug: have the ranks compare the inputs that they consume, request by request
    workers: int = 2
    max_body_bytes: int = 64 * MEBI
    max_pixels: int = 33_177_600  # of an image or a video's frame, 8K UHD; from the header (64 M took a worker 1.3 GB)
    max_images: int = 8  # in one request
    max_videos: int = 1  # in one request
    max_video_seconds: float = 600.0  # of one video, counted from its packets
    max_video_frames: int = 768  # sampled of one video, as the reference; a longer one is sampled more thinly
    max_waiting: int = 256  # requests in the house, from body to last token, before 503
    max_held_bytes: int = 2048 * MEBI  # bodies and payloads in the house that no rank has taken yet, before 503
    allow_remote_images: bool = (
        False  # fetch http(s) URLs of images and videos; never from addresses that are not public
    )
    pixels: PixelForm = "uint8"  # how payloads travel by handle; float32: as under the strategies without
    arena_bytes: int = 1024 * MEBI  # shared memory for payloads, taken at start; 0: none, and no handles
    arena_wait_s: float = 10.0  # for room in a full arena, before 503
    remote_timeout_s: float = 10.0  # for one URL, redirects included
    remote_max_bytes: int = 20 * MEBI  # of one image or video
    remote_max_redirects: int = 3
    worker_start_timeout_s: float = 60.0
    job_timeout_s: float = 60.0  # one request in a worker; past it the worker is killed
    request_timeout_s: float = 300.0  # from the first byte to the last token
    shutdown_timeout_s: float = 10.0  # what is running may finish within this
    default_max_tokens: int = 256  # where the client gives none; clipped to what the context leaves
    default_temperature: float | None = None  # None: the model's generation_config.json, else 1 as at OpenAI
    context: int | None = None  # tokens of prompt and answer together; None: max_position_embeddings of config.json

    def __post_init__(self) -> None:
        self._require("model-name", self.model_name, bool(self.model_name), "any name but the empty one")
        self._require("port", self.port, 0 <= self.port <= 65535, "0 to 65535")
        self._require("workers", self.workers, 1 <= self.workers <= 256, "1 to 256")
        for name in ("max_body_bytes", "max_pixels", "max_waiting", "max_held_bytes", "remote_max_bytes"):
            self._require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("max_images", "max_videos", "remote_max_redirects"):
            self._require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        seconds = self.max_video_seconds
        self._require("max-video-seconds", seconds, 0 < seconds <= 86400, "above 0, at most 86400 seconds")
        frames = self.max_video_frames
        self._require("max-video-frames", frames, 2 <= frames <= 768, "2 to 768")  # 768: the reference's own limit
        for name in ("remote", "worker_start", "job", "request", "shutdown"):
            seconds = getattr(self, f"{name}_timeout_s")
            self._require(f"{name}_timeout", seconds, 0 < seconds <= 86400, "above 0, at most 86400 seconds")
        self._require("pixels", self.pixels, self.pixels in get_args(PixelForm), " or ".join(get_args(PixelForm)))
        self._require("arena-bytes", self.arena_bytes, self.arena_bytes >= 0, "0 or more")
        self._require("arena-wait", self.arena_wait_s, 0 < self.arena_wait_s <= 3600, "above 0, at most 3600 seconds")
        self._require("default-max-tokens", self.default_max_tokens, self.default_max_tokens >= 1, "1 or more")
        temperature = self.default_temperature
        self._require("default-temperature", temperature, temperature is None or 0 <= temperature <= 2, "0 to 2")
        self._require("context", self.context, self.context is None or self.context >= 2, "2 or more")

    @staticmethod
    def _require(option: str, value: object, holds: bool, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"--{option.replace('_', '-')}: {value!r} is not allowed; allowed: {allowed}")


def to_json(config: FrontendConfig) -> str:
    """The configuration as one command-line argument for a worker."""
    return msgspec.json.encode(config, enc_hook=str).decode()


def from_json(text: str) -> FrontendConfig:
    """Inverse of :func:`to_json`."""
    return msgspec.json.decode(text, type=FrontendConfig, dec_hook=_to_path)


def _to_path(kind: type, value: Any) -> Path:
    return Path(value)
