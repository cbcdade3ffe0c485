"""The one reader of a model directory's small JSON files: config.json and generation_config.json, no weights.

It imports nothing heavy, so that a mistake in the model's directory is told before anything is started.
"""

from __future__ import annotations

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


def read_json(path: Path, *, required: bool) -> dict[str, Any]:
    """The JSON object in ``path``; {} if it is not there and not required. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        if not required:
            return {}
        raise ConfigError(f"--model: {path.parent} has no {path.name}") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"--model: {path} cannot be read: {error}") from error


def text_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of the language model: newer checkpoints keep them under ``text_config``, older ones at the top."""
    nested = config.get("text_config")
    given = {key: value for key, value in nested.items() if value is not None} if isinstance(nested, dict) else {}
    return {**config, **given}


def read_config(model: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises ConfigError, or UnsupportedModel if the engine does not run it."""
    config = read_json(model / "config.json", required=True)
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise UnsupportedModel(f"--model: {model} is a {kind!r} model; supported: {', '.join(SUPPORTED)}")
    if text_settings(config).get("use_sliding_window"):
        raise UnsupportedModel(f"--model: {model} uses sliding-window attention in its language layers; not supported")
    return config


def model_config(model: Path) -> ModelConfig:
    """Of the checkpoint's config.json, without transformers, whose import takes seconds.

    Raises ConfigError or UnsupportedModel, naming --model.
    """
    config = read_config(model)
    try:
        return msgspec.convert({**config, "text_config": text_settings(config)}, ModelConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--model: {model / 'config.json'}: {error}") from error


def check_divides(config: dict[str, Any], ranks: int) -> None:
    """Raises ConfigError unless heads, KV heads and the MLP can be split evenly over ``ranks``."""
    text = text_settings(config)
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if text[name] % ranks:
            raise ConfigError(f"--tp: {ranks} ranks do not divide the model's {name} ({text[name]})")


def context_length(directory: Path, given: int | None) -> int:
    """Tokens of prompt and answer together: ``given``, or what config.json says. Raises ConfigError."""
    value = text_settings(read_json(directory / "config.json", required=True)).get("max_position_embeddings")
    if not isinstance(value, int):
        if given is not None:
            return given
        raise ConfigError(f"--context: {directory / 'config.json'} has no max_position_embeddings; give a number")
    if given is not None and given > value:
        raise ConfigError(f"--context: {given} is more than the model's max_position_embeddings; allowed: 2 to {value}")
    return given or value


def stop_ids(directory: Path) -> tuple[int, ...]:
    """Tokens that end an answer: ``eos_token_id`` of generation_config.json, else of config.json; ascending."""
    for config in (
        read_json(directory / "generation_config.json", required=False),
        read_json(directory / "config.json", required=True),
    ):
        value = text_settings(config).get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(sorted({int(token) for token in value}))
    return ()


def default_temperature(directory: Path, given: float | None) -> float:
    """``given``, else what generation_config.json asks for (0 where it turns sampling off), else 1 as at OpenAI."""
    if given is not None:
        return given
    generation = read_json(directory / "generation_config.json", required=False)
    if generation.get("do_sample") is False:
        return 0.0
    value = generation.get("temperature")
    return float(value) if isinstance(value, int | float) else 1.0
