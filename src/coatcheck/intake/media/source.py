"""Where an image or a video is to be had, as a program has it from its client."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Source(NamedTuple):
    """One image or video of a request."""

    kind: Literal["image", "video"]
    param: str  # where it stands in the request
    url: str
