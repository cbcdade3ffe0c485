"""What the arithmetic of a request costs, and how many a second the cards could do at their peak and no more.

Multiply-adds of matrix products and attention only; a measured rate above the bound means that something was not
computed. No server reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Dense bf16, FLOP/s: NVIDIA's data sheets, without sparsity. The SXM parts; a PCIe card does less.
PEAKS = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}
PATCH, MERGE = 14, 2


@dataclass(frozen=True)
class Work:
    """FLOP of one request."""

    language: float
    vision: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.language + self.vision


def peak(gpu: str) -> float | None:
    """FLOP/s of a card by its name; None for one that is not in the table."""
    return next((value for name, value in PEAKS.items() if name in gpu), None)


def patches(side: int) -> int:
    """Of a square picture, as Qwen2.5-VL's processor rounds its sides."""
    unit = PATCH * MERGE
    return (max(unit, round(side / unit) * unit) // PATCH) ** 2


def work(config: Mapping[str, Any], prompt_tokens: float, images: int, side: int, output_tokens: int) -> Work:
    """``config``: the model's config.json. ``prompt_tokens``: those computed, pictures' included."""
    text = config.get("text_config", config)
    return Work(
        language=_language(text, prompt_tokens, output_tokens),
        vision=images * _vision(config["vision_config"], patches(side)),
    )


def _language(text: Mapping[str, Any], prompt: float, output: int) -> float:
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    head = hidden // text["num_attention_heads"]
    keys = 2 * text["num_key_value_heads"] * head  # and values
    weights = layers * (hidden * (2 * hidden + keys) + 3 * hidden * text["intermediate_size"])
    # Every token meets those before it: half of a square, twice (scores and values).
    tokens = prompt + output
    attention = layers * 2 * tokens * tokens * hidden
    return float(2 * weights * tokens + attention + 2 * output * hidden * text["vocab_size"])


def _vision(vision: Mapping[str, Any], count: int) -> float:
    hidden, depth = vision["hidden_size"], vision["depth"]
    block = 4 * hidden * hidden + 3 * hidden * vision["intermediate_size"]
    full = len(vision["fullatt_block_indexes"])
    window = (vision["window_size"] // PATCH) ** 2
    attention = 4 * count * hidden * (full * count + (depth - full) * min(window, count))
    merged = hidden * MERGE**2
    merger = count / MERGE**2 * merged * (merged + vision["out_hidden_size"])
    embed = count * hidden * 3 * vision["temporal_patch_size"] * PATCH**2
    return float(2 * (depth * block * count + merger + embed) + attention)
