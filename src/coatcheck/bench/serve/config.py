"""What ``coatcheck bench serve`` asks of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from coatcheck.errors import ConfigError

MADE = "made"  # --video: clips of the benchmark's own, none twice
FORMATS = ("jpeg", "png")
LEAST_SIDE = 112  # pixels: a smaller picture has no room for what makes it unique
MOST_SIDE = 8192
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of one's own pictures


@dataclass(frozen=True)
class Load:
    """See the comments; an impossible value raises ConfigError naming the option."""

    clients: int = 32  # image requests under way at once: a closed loop
    images: int = 1  # per request; 0 with a video, or for text alone
    side: int = 1024  # pixels of a square picture; see width
    image_format: str = "jpeg"  # or png
    video: str = ""  # a file, or "made"; then images must be 0
    directory: Path | None = None  # one's own pictures, in turn; they come again when there are no more
    output_tokens: int = 32  # max_tokens of an image request, with ignore_eos
    text_streams: int = 4  # long text answers beside, whose gaps between tokens are measured
    probe_s: float = 1.0  # a text request of 8 tokens is sent so often; 0: none
    health_s: float = 0.5  # GET /health so often; 0: none
    ramp_s: float = 5.0  # before the window; nothing of it counts
    window_s: float = 15.0
    seed: int = 0  # of what made pictures look like, not of which they are: those are new every time
    timeout_s: float = 120.0  # of one request; one that takes longer is an error
    model: str = ""  # "": the first of GET /v1/models
    width: int = 0  # with height: pixels of a picture that is no square; 0: side
    height: int = 0

    def __post_init__(self) -> None:
        for name, least in (("clients", 1), ("images", 0), ("output_tokens", 1), ("text_streams", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)} is less than {least}")
        for option, seconds, least_s in (
            ("--window", self.window_s, 0.1),
            ("--timeout", self.timeout_s, 0.1),
            ("--ramp", self.ramp_s, 0.0),
            ("--probe", self.probe_s, 0.0),
            ("--health", self.health_s, 0.0),
        ):
            if not least_s <= seconds <= 86_400:
                raise ConfigError(f"{option}: {seconds:g} is not from {least_s:g} to 86400 seconds")
        if not all(LEAST_SIDE <= pixels <= MOST_SIDE for pixels in self.size):
            raise ConfigError(f"--image: from {LEAST_SIDE} to {MOST_SIDE} pixels each way, not {self.size}")
        if self.image_format not in FORMATS:
            raise ConfigError(f"--format: {self.image_format!r} is not one of {', '.join(FORMATS)}")
        if self.video and (self.images or self.directory):
            raise ConfigError("--video: requests have one video and no picture; not with --images or --directory")
        if self.video not in ("", MADE) and not Path(self.video).is_file():
            raise ConfigError(f"--video: there is no file {self.video}; allowed: a file, or '{MADE}'")
        if self.directory is not None and not own_pictures(self.directory):
            raise ConfigError(f"--directory: {self.directory} has no picture ({', '.join(SUFFIXES)})")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of each picture, in pixels."""
        return self.width or self.side, self.height or self.side

    def as_json(self) -> dict[str, Any]:
        """Plain values, as a report's options have them."""
        return asdict(self) | {"directory": None if self.directory is None else str(self.directory)}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Self:
        """From :meth:`as_json`."""
        directory = values["directory"]
        return cls(**{**values, "directory": None if directory is None else Path(directory)})


def own_pictures(directory: Path) -> list[Path]:
    """The directory's pictures by name; not of directories in it."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def root_of(url: str) -> str:
    """``http://host:port`` of that, with ``/v1`` behind it or not. Raises ConfigError."""
    root = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    if not root.startswith(("http://", "https://")):
        raise ConfigError(f"--url: {url!r} is no URL such as http://127.0.0.1:8000")
    return root
