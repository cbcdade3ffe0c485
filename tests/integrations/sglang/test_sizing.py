"""How large an arena is, if nobody says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.integrations.sglang.sizing import LEAST, MIB, MOST, default_bytes, token_bytes

GIB = 1 << 30
TOKEN = 18816  # bytes: 4 patches of 14 x 14 pixels, 3 channels, 2 frames, float32
PLENTY = {"available": 1 << 50, "pool_tokens": 1 << 40, "running": 1 << 20, "input_tokens": 1 << 20, "per_token": TOKEN}


def size(**values: int) -> int:
    return default_bytes(**{**PLENTY, **values}, whole=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"pool_tokens": 100_000}, 2 * 100_000 * TOKEN),
        ({"running": 4, "input_tokens": 8192}, 2 * 4 * 8192 * TOKEN),
        ({"running": 4, "input_tokens": 8192, "pool_tokens": 10_000}, 2 * 10_000 * TOKEN),
        ({"available": 8 * GIB}, 2 * GIB),
        ({"available": 8 * GIB, "pool_tokens": 25_000}, 2 * 25_000 * TOKEN),
        ({}, MOST),
        ({"pool_tokens": 1}, LEAST),
        ({"pool_tokens": 1, "available": 4 * LEAST}, LEAST),
    ],
    ids=["the pool", "running x input", "the less of both", "memory", "pool below memory", "most", "least", "just"],
)
def test_it_is_twice_what_can_run_within_what_can_be_spared(values: dict[str, int], expected: int) -> None:
    assert size(**values) == expected // MIB * MIB


def compact(**values: int) -> int:
    return default_bytes(**{**PLENTY, **values}, whole=True)


def test_in_mode_whole_it_is_four_times_the_compact_pixels_that_can_run() -> None:
    assert compact(pool_tokens=100_000) == 4 * 100_000 * (TOKEN // 8) // MIB * MIB
    assert compact() == MOST
    assert compact(pool_tokens=1) == LEAST


@pytest.mark.parametrize("available", [0, 4 * LEAST - 1])
def test_too_little_memory_is_said_with_the_figures(available: int) -> None:
    text = f"^{available // MIB} MiB of memory are to be had, of which an arena takes at most 25%: less than 64 MiB$"
    with pytest.raises(ConfigError, match=text):
        size(available=available)


def config(**vision: Any) -> Any:
    return SimpleNamespace(vision_config=SimpleNamespace(**vision))


QWEN2_5 = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
QWEN3 = {**QWEN2_5, "patch_size": 16}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (config(**QWEN2_5), TOKEN),
        (config(**QWEN3), 4 * 3 * 2 * 16 * 16 * 4),
        (config(**{**QWEN2_5, "in_channels": None, "in_chans": 1}), TOKEN // 3),
        (config(**{name: QWEN3[name] for name in QWEN3 if name != "in_channels"}), 24576),
        (config(patch_size=14, image_size=448), TOKEN),
        (config(**{**QWEN2_5, "patch_size": [14, 14]}), TOKEN),
        (config(**{**QWEN2_5, "patch_size": None}), TOKEN),
        (SimpleNamespace(), TOKEN),
        (SimpleNamespace(vision_config=None), TOKEN),
        (None, TOKEN),
    ],
    ids=["qwen2.5", "qwen3", "in_chans", "no channels", "other", "list", "none", "no vision", "null", "no config"],
)
def test_a_token_s_bytes_are_its_patches(given: Any, expected: int) -> None:
    assert token_bytes(given) == expected
