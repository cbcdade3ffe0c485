"""The architecture of the default model and the JSON files that describe it.

All widths divide by 4, so that 1, 2 and 4 tensor-parallel ranks share them evenly. Every vision layer is windowed
(`fullatt_block_indexes` is empty). `rope_theta` is small because positions are: an image's rows and columns count
up to 37, and the lowest frequencies, which carry the columns, must still turn visibly over a few of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.tokenizer import MAX_LENGTH, SPECIAL_IDS, VOCAB_SIZE

PATCH = 14  # pixels
MERGE = 2  # patches a side that become one token
TOKEN_SIDE = PATCH * MERGE  # pixels
TEMPORAL = 2
# CLIP's means and deviations, as every Qwen2-VL preprocessor has them, for RGB in 0..1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS = 112 * 112  # smaller images are scaled up to about this
MAX_PIXELS = 1036 * 1036  # 1024 x 1024 rounds to 37 x 37 tokens, which just fits

ROPE: dict[str, Any] = {"type": "mrope", "rope_type": "default", "mrope_section": [8, 12, 12]}
ROPE_THETA = 50.0

TEXT: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": SPECIAL_IDS["<|endoftext|>"],
    "eos_token_id": SPECIAL_IDS["<|im_end|>"],
    "pad_token_id": SPECIAL_IDS["<|endoftext|>"],
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": MAX_LENGTH,
    "max_window_layers": 4,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": ROPE,
    "rope_theta": ROPE_THETA,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB_SIZE,
}
VISION: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "depth": 3,
    "fullatt_block_indexes": [],
    "hidden_act": "silu",
    "hidden_size": 128,
    "in_channels": 3,
    "in_chans": 3,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "num_heads": 4,
    "out_hidden_size": 256,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "spatial_patch_size": PATCH,
    "temporal_patch_size": TEMPORAL,
    "tokens_per_second": 2,
    "window_size": 224,
}


def config_dict() -> dict[str, Any]:
    """config.json: the nested layout, and the flat one of older readers beside it."""
    rope_parameters = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": ROPE_THETA}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": "float32",
        "torch_dtype": "float32",
        "image_token_id": SPECIAL_IDS["<|image_pad|>"],
        "video_token_id": SPECIAL_IDS["<|video_pad|>"],
        "vision_start_token_id": SPECIAL_IDS["<|vision_start|>"],
        "vision_end_token_id": SPECIAL_IDS["<|vision_end|>"],
        "vision_token_id": SPECIAL_IDS["<|vision_pad|>"],
        **TEXT,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "dtype": "float32",
            "torch_dtype": "float32",
            **TEXT,
            "rope_parameters": rope_parameters,
            "layer_types": ["full_attention"] * TEXT["num_hidden_layers"],
        },
        "vision_config": VISION,
    }


def preprocessor_dict() -> dict[str, Any]:
    """preprocessor_config.json of a Qwen2VLImageProcessor; sizes are in pixels of the whole image."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "merge_size": MERGE,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": PATCH,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "temporal_patch_size": TEMPORAL,
    }


def generation_dict() -> dict[str, Any]:
    """generation_config.json: greedy, ends at <|im_end|>."""
    return {
        "bos_token_id": SPECIAL_IDS["<|endoftext|>"],
        "do_sample": False,
        "eos_token_id": [SPECIAL_IDS["<|im_end|>"], SPECIAL_IDS["<|endoftext|>"]],
        "max_new_tokens": 128,
        "pad_token_id": SPECIAL_IDS["<|endoftext|>"],
    }


def save_json(directory: Path) -> None:
    """Write config.json, preprocessor_config.json and generation_config.json."""
    files = {
        "config.json": config_dict(),
        "preprocessor_config.json": preprocessor_dict(),
        "generation_config.json": generation_dict(),
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
