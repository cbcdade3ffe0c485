"""What SGLang's processor makes of a prompt and the grids of its images, by arithmetic: no placeholder is tokenized.

For the Qwen-VL family (QwenVLImageProcessor of SGLang 0.5.23) and images alone. That it is the same to the bit is
tested against SGLang's own functions (``tests/sglang/test_whole.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int, int]  # (t, h, w) in patches
Span = tuple[int, int]  # first and last index in the expanded prompt


def expand(ids: Sequence[int], placeholder: int, counts: Sequence[int]) -> tuple[list[int], list[Span]] | None:
    """The prompt with placeholder i as often as ``counts[i]`` says, and where each lies then.

    None: there are not as many placeholders as counts.
    """
    places = [at for at, token in enumerate(ids) if token == placeholder]
    if len(places) != len(counts):
        return None
    expanded: list[int] = []
    spans: list[Span] = []
    end = 0
    for place, count in zip(places, counts, strict=True):
        expanded.extend(ids[end:place])
        spans.append((len(expanded), len(expanded) + count - 1))
        expanded.extend([placeholder] * count)
        end = place + 1
    expanded.extend(ids[end:])
    return expanded, spans


def positions(
    length: int, spans: Sequence[Span], grids: Sequence[Grid], merge: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """M-RoPE: (3, length), and the delta, (1, 1). ``spans``: in order; ``merge``: edge of the patches of one token.

    Text counts on; an image takes rows and columns of its merged grid, and text behind it goes on above the largest.
    """
    made = np.empty((3, length), dtype=np.int64)
    at = following = 0
    for (start, last), (t, h, w) in zip(spans, grids, strict=True):
        made[:, at:start] = np.arange(following, following + start - at)
        following += start - at
        shape = t, h // merge, w // merge
        made[:, start : last + 1] = np.indices(shape).reshape(3, -1) + following
        following += max(shape)
        at = last + 1
    made[:, at:] = np.arange(following, following + length - at)
    delta = made.max() + 1 - length if length else 0
    return made, np.array([[delta]], dtype=np.int64)
