"""How large an image, or a video's frame, may be: decided before anything is decoded."""

from __future__ import annotations

from typing import Literal

from coatcheck.errors import BadRequest

MAX_ASPECT = 200  # long side to short side; the reference processor refuses more


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
