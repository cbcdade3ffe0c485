"""What the front end reads from a model directory: small JSON files, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from coatcheck.errors import ConfigError


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


def text_setting(config: dict[str, Any], key: str) -> Any:
    """A setting of the language model: newer checkpoints keep it under ``text_config``, older ones at the top."""
    nested = config.get("text_config")
    if isinstance(nested, dict) and nested.get(key) is not None:
        return nested[key]
    return config.get(key)


def context_length(directory: Path, given: int | None) -> int:
    """Tokens of prompt and answer together: ``given``, or what config.json says. Raises ConfigError."""
    value = text_setting(read_json(directory / "config.json", required=True), "max_position_embeddings")
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
        value = text_setting(config, "eos_token_id")
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
