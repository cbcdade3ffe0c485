"""A Qwen2.5-VL of 7B dimensions without weights, for SGLang's ``--load-format dummy``: config, tokenizer, processor.

The tokenizer and everything that is not a dimension are the default model's, so nothing has to be fetched.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coatcheck.errors import ConfigError

SIZES: Mapping[str, Mapping[str, int]] = {
    "7b": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
    },
    "tiny": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 512,
        "vocab_size": 512,
    },
}
VISION = {  # of 7B; "tiny" keeps the default model's
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
}
MAX_PIXELS = 2 * 1036 * 1036  # 1024 x 1024 is not made smaller
CONTEXT = 32768


def write(source: Path, target: Path, size: str) -> None:
    """``source``: the default model's directory. ``target`` is made. Raises ConfigError for an unknown size."""
    if size not in SIZES:
        raise ConfigError(f"--size {size}: allowed are {', '.join(SIZES)}")
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja", ".txt"):
            shutil.copy(file, target / file.name)
    _write(target / "config.json", configuration(json.loads((source / "config.json").read_text()), size))
    pictures = json.loads((source / "preprocessor_config.json").read_text())
    pictures["max_pixels"] = pictures["size"]["longest_edge"] = MAX_PIXELS
    _write(target / "preprocessor_config.json", pictures)


def configuration(config: dict[str, Any], size: str) -> dict[str, Any]:
    """The default model's config.json with that size's dimensions; the same object, changed."""
    dimensions = SIZES[size]
    half = dimensions["hidden_size"] // dimensions["num_attention_heads"] // 2
    rope = {"rope_type": "default", "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8]}
    for text in (config, config["text_config"]):
        text.update(dimensions)
        text.update(
            max_position_embeddings=CONTEXT,
            max_window_layers=dimensions["num_hidden_layers"],
            rope_theta=1000000.0,
            rope_scaling={"type": "mrope", **rope},
            tie_word_embeddings=False,
            dtype="bfloat16",
            torch_dtype="bfloat16",
        )
        if "rope_parameters" in text:
            text["rope_parameters"] = {**rope, "rope_theta": 1000000.0}
        if "layer_types" in text:
            text["layer_types"] = ["full_attention"] * dimensions["num_hidden_layers"]
    vision = config["vision_config"]
    if size != "tiny":
        vision.update(VISION)
    vision.update(out_hidden_size=dimensions["hidden_size"])
    return config


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
