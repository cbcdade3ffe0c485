"""What images and videos may be, and the one default of each limit. A program's configuration takes them over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from coatcheck.arena.handle import PixelForm
from coatcheck.errors import BadRequest, ConfigError

MEBI = 1 << 20
MAX_ASPECT = 200  # long side to short side; the reference processor refuses more


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


def check_size(kind: Literal["image", "video"], size: tuple[int, int], max_pixels: int, param: str) -> None:
    """``size``: width and height in pixels. Raises BadRequest."""
    width, height = size
    if width * height > max_pixels:
        raise too_large(kind, f"{width} x {height} pixels", max_pixels, param)
    if width * height == 0:
        raise BadRequest(f"The {kind} has no pixels", param=param, code=f"invalid_{kind}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadRequest(
            f"The {kind} is {width} x {height}; one side may be at most {MAX_ASPECT} times the other",
            param=param,
            code=f"invalid_{kind}_aspect",
        )


def too_large(kind: Literal["image", "video"], what: str, max_pixels: int, param: str) -> BadRequest:
    """``what`` it has, such as "4 x 4 pixels"."""
    subject = "image has" if kind == "image" else "video's frames have"
    return BadRequest(
        f"The {subject} {what}; at most {max_pixels} pixels are allowed", param=param, code=f"{kind}_too_large"
    )
