"""What a checkpoint's config.json says, read before anything heavy is imported or started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coatcheck.errors import ConfigError, UnsupportedModel

SUPPORTED = ("qwen2_5_vl",)


def read_config(model: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises ConfigError or UnsupportedModel, naming --model."""
    try:
        config: dict[str, Any] = json.loads((model / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model: {model} has no readable config.json: {error}") from error
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise UnsupportedModel(f"--model: {model} is a {kind!r} model; supported: {', '.join(SUPPORTED)}")
    if config.get("use_sliding_window") or config.get("text_config", {}).get("use_sliding_window"):
        raise UnsupportedModel(f"--model: {model} uses sliding-window attention in its language layers; not supported")
    return config


def check_divides(config: dict[str, Any], ranks: int) -> None:
    """Raises ConfigError unless heads, KV heads and the MLP can be split evenly over ``ranks``."""
    text = {**config, **config.get("text_config", {})}
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if text[name] % ranks:
            raise ConfigError(f"--tp: {ranks} ranks do not divide the model's {name} ({text[name]})")
