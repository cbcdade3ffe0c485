"""The benchmark's own video: ``python -m coatcheck.bench.support.clip FILE.mp4`` writes it.

10 seconds of 480 x 360 at 24 frames a second, H.264, about 2 MB: shapes that drift over a grainy ground, drawn from a
seed. Sampled as the model does it is 20 frames, of 476 x 364 pixels: 8840 patches and 2210 tokens.
"""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = (480, 360)
SECONDS = 10
RATE = 24
SHAPES = 12
BITS = 1_610_000  # a second, for 2 MB
GRAIN = 12  # levels, up and down: what fills the bits


def make(seed: int = 0, group: int = 0) -> bytes:
    """An MP4. The same seed gives the same frames, and by the same version of the encoder the same bytes.

    ``group``: every so many frames decode on their own; 0: as the encoder decides.
    """
    buffer = io.BytesIO()
    options = {
        "preset": "veryfast",
        "x264-params": f"bitrate={BITS // 1000}:vbv-maxrate={BITS // 1000}:vbv-bufsize=1600",
    }
    if group:
        options["x264-params"] += f":keyint={group}:min-keyint={group}:scenecut=0:open-gop=0"
    with av.open(buffer, "w", format="mp4") as made:
        stream: Any = made.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.thread_count = 1  # the result depends on the number
        for at, picture in enumerate(_frames(seed)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, RATE)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return buffer.getvalue()


def _frames(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    width, height = SIZE
    shapes = [
        (
            rng.uniform((0, 0), SIZE),
            rng.uniform(-90, 90, 2),
            rng.uniform(15, 60),
            tuple(rng.integers(0, 256, 3).tolist()),
        )
        for _ in range(SHAPES)
    ]
    grain = rng.integers(-GRAIN, GRAIN + 1, (4, height, width, 1), dtype=np.int16)
    for at in range(SECONDS * RATE):
        image = Image.new("RGB", SIZE, (96, 112, 128))
        draw = ImageDraw.Draw(image)
        for start, speed, radius, colour in shapes:
            x, y = (start + speed * at / RATE) % SIZE
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        picture: NDArray[np.int16] = np.asarray(image, dtype=np.int16) + np.roll(grain[at % 4], at * 7, 1)
        yield picture.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(make())
