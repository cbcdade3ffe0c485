"""Small videos, made with PyAV: frame ``n`` can be told by its grey."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RATE = 24
FORMATS = {"mp4": "libx264", "webm": "libvpx-vp9", "matroska": "libx264"}

Picture = Callable[[int], NDArray[np.uint8]]


def grey(width: int, height: int) -> Picture:
    """Frame ``n`` is of one grey, 4 levels lighter than the one before."""
    return lambda n: np.full((height, width, 3), n * 4 % 250, np.uint8)


def noise(width: int, height: int) -> Picture:
    """Frame ``n`` is noise of its own."""
    return lambda n: np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)


def clip(
    frames: int = 48,
    size: tuple[int, int] = (64, 48),
    container: str = "mp4",
    codec: str = "",
    *,
    picture: Picture | None = None,
    times: Iterable[float] | None = None,
    rotation: int = 0,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> bytes:
    """``times``: of each frame, in seconds (default: 24 a second)."""
    draw = picture or grey(*size)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as made:
        stream: Any = made.add_stream(codec or FORMATS[container], rate=RATE, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, 24_000)
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for n, time in zip(range(frames), times or (n / RATE for n in range(frames)), strict=False):
            frame = av.VideoFrame.from_ndarray(draw(n), format="rgb24")
            frame.pts, frame.time_base = round(time * 24_000), Fraction(1, 24_000)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return buffer.getvalue()


def sound(container: str = "mp4", codec: str = "aac") -> bytes:
    """Audio alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as made:
        stream: Any = made.add_stream(codec, rate=48_000, layout="mono")
        for n in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, n * 1024
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return buffer.getvalue()
