"""Limits and options of the intake. The configuration of a program takes them over: each default stands here only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import msgspec

from coatcheck.arena import ArenaAddress
from coatcheck.arena.handle import PixelForm
from coatcheck.errors import ConfigError

MEBI = 1 << 20


def require(option: str, value: object, holds: bool, allowed: str) -> None:
    """Raises ConfigError, which names the option, unless ``holds``."""
    if not holds:
        raise ConfigError(f"--{option.replace('_', '-')}: {value!r} is not allowed; allowed: {allowed}")


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What images and videos may be. Times in seconds, sizes in bytes; an impossible value raises ConfigError."""

    max_pixels: int = 33_177_600  # of an image or a video's frame, 8K UHD; from the header (64 M took a worker 1.3 GB)
    max_images: int = 8  # in one request
    max_videos: int = 1  # in one request
    max_video_seconds: float = 600.0  # of one video, counted from its packets
    max_video_frames: int = 768  # sampled of one video, as the reference; a longer one is sampled more thinly
    allow_remote_images: bool = False  # fetch http(s) URLs of images and videos; only from public addresses
    remote_timeout_s: float = 10.0  # for one URL, redirects included
    remote_max_bytes: int = 20 * MEBI  # of one image or video
    remote_max_redirects: int = 3
    pixels: PixelForm = "uint8"  # how payloads travel by handle

    def __post_init__(self) -> None:
        for name in ("max_pixels", "remote_max_bytes"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("max_images", "max_videos", "remote_max_redirects"):
            require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        seconds = self.max_video_seconds
        require("max-video-seconds", seconds, 0 < seconds <= 86400, "above 0, at most 86400 seconds")
        frames = self.max_video_frames
        require("max-video-frames", frames, 2 <= frames <= 768, "2 to 768")  # 768: the reference's own limit
        seconds = self.remote_timeout_s
        require("remote_timeout", seconds, 0 < seconds <= 86400, "above 0, at most 86400 seconds")
        require("pixels", self.pixels, self.pixels in get_args(PixelForm), " or ".join(get_args(PixelForm)))


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The worker processes, and how long their jobs wait. Times in seconds; an impossible value raises ConfigError."""

    workers: int = 2
    max_waiting: int = 256  # jobs that wait for a worker, before Overloaded
    worker_start_timeout_s: float = 60.0
    job_timeout_s: float = 60.0  # one job in a worker; past it the worker is killed
    arena_wait_s: float = 10.0  # for room in a full arena, before ArenaFull

    def __post_init__(self) -> None:
        require("workers", self.workers, 1 <= self.workers <= 256, "1 to 256")
        require("max_waiting", self.max_waiting, self.max_waiting >= 1, "1 or more")
        for name in ("worker_start", "job"):
            seconds = getattr(self, f"{name}_timeout_s")
            require(f"{name}_timeout", seconds, 0 < seconds <= 86400, "above 0, at most 86400 seconds")
        require("arena-wait", self.arena_wait_s, 0 < self.arena_wait_s <= 3600, "above 0, at most 3600 seconds")


class WorkerSettings(msgspec.Struct, frozen=True):
    """What a worker is told when it is started, on its command line (see :func:`coatcheck.wire.to_argument`)."""

    pool: str  # ZMQ address of the pool's ROUTER socket
    identity: str  # "place.life" in the pool
    arena: ArenaAddress | None  # None: payloads ride in the message
    handler: str  # "module:Class", a coatcheck.intake.worker.Handler
    handler_config: str  # what it is made of
