"""How large an arena is, if nobody says: what the server's requests can fill, and the machine can spare.

The pixels of all running requests are bounded by the KV pool: an image of so many tokens has so many bytes of features.
So a pool of 300,000 tokens never has more than 5.6 GB of Qwen2.5-VL's running, whatever the pictures' sizes. As many
again may wait for their turn. In mode ``whole`` an image has an eighth of the bytes, and three times as many may wait:
room for them is cheap, and an image that finds none is processed by SGLang.
"""

from __future__ import annotations

from typing import Any

from coatcheck.errors import ConfigError

MIB = 1 << 20
LEAST = 64 * MIB  # below it an arena holds two pictures of 1024 x 1024 pixels, and is full most of the time
MOST = 16 << 30  # bytes; it is faulted in at about a second a GiB, and 600 pictures of 1024 x 1024 wait in it
SHARE = 0.25  # of the memory that can be had: the rest is the page cache's, and SGLang's own, which grows with load
_COMPACT = 8  # times as many bytes have float32 features of two equal frames as uint8 pixels of one
_TOKEN = 4 * 1176 * 4  # bytes of a token's features: 4 patches of 1,176 float32, Qwen2-VL and Qwen2.5-VL


def token_bytes(config: Any) -> int:
    """Bytes of float32 features behind a token of an image, by the model's Hugging Face configuration.

    Of a model that does not tell its patches so: Qwen2.5-VL's.
    """
    vision = getattr(config, "vision_config", None)
    try:
        edge, merge, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size  # type: ignore[union-attr]
        channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", None) or 3
        return int(merge * merge * channels * frames * edge * edge * 4)
    except (AttributeError, TypeError):
        return _TOKEN


def default_bytes(
    available: int, pool_tokens: int, running: int, input_tokens: int, per_token: int, *, whole: bool
) -> int:
    """Bytes of an arena, whole MiB.

    ``available``: bytes of memory to be had; ``pool_tokens``: of the KV pool; ``running``: most requests at once;
    ``input_tokens``: most of one request; ``per_token``: bytes of features; ``whole``: the mode.
    Raises ConfigError if there is too little.
    """
    per_token = 4 * per_token // _COMPACT if whole else 2 * per_token  # running, and what waits
    useful = min(pool_tokens, running * input_tokens) * per_token
    size = int(min(max(useful, LEAST), available * SHARE, MOST)) // MIB * MIB
    if size < LEAST:
        raise ConfigError(
            f"{available // MIB} MiB of memory are to be had, of which an arena takes at most {SHARE:.0%}: "
            f"less than {LEAST // MIB} MiB"
        )
    return size
