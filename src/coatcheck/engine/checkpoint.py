"""What a checkpoint's config.json says, read before anything heavy is imported or started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from coatcheck.errors import ConfigError, UnsupportedModel

SUPPORTED = ("qwen2_5_vl",)


class VisionConfig(msgspec.Struct, frozen=True):
    """Of ``vision_config``; names and defaults are transformers' own (Qwen2_5_VLVisionConfig)."""

    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    tokens_per_second: int = 4


class TextConfig(msgspec.Struct, frozen=True):
    """Of ``text_config``, which older checkpoints have at the top (Qwen2_5_VLTextConfig)."""

    vocab_size: int = 152064


class ModelConfig(msgspec.Struct, frozen=True):
    """What a rank has to know to make a request's inputs, with or without a model (Qwen2_5_VLConfig)."""

    text_config: TextConfig
    vision_config: VisionConfig = VisionConfig()
    image_token_id: int = 151655
    video_token_id: int = 151656

    @property
    def patch_width(self) -> int:
        """Values per patch, in the wide form (:mod:`coatcheck.pixels`)."""
        vision = self.vision_config
        return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


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


def model_config(model: Path) -> ModelConfig:
    """Of the checkpoint's config.json, without transformers, whose import takes seconds.

    Raises ConfigError or UnsupportedModel, naming --model.
    """
    config = read_config(model)
    try:
        return msgspec.convert({**config, "text_config": _text(config)}, ModelConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--model: {model / 'config.json'}: {error}") from error


def _text(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, **config.get("text_config", {})}


def check_divides(config: dict[str, Any], ranks: int) -> None:
    """Raises ConfigError unless heads, KV heads and the MLP can be split evenly over ``ranks``."""
    text = _text(config)
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if text[name] % ranks:
            raise ConfigError(f"--tp: {ranks} ranks do not divide the model's {name} ({text[name]})")
