"""Making the model and saving it as a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.model_config import config_dict, save_json
from training.tokenizer import build_tokenizer, save_tokenizer


def new_model(seed: int) -> Any:
    """A model with random weights, float32, the same for the same seed."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config_dict()))


def load_model(directory: Path) -> Any:
    """The model of a directory, in float32."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)


def published_name(name: str) -> str:
    """A parameter's name in the layout of published Qwen2.5-VL checkpoints, which every loader knows."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.") if name.startswith("model.visual.") else name


def save_model(model: Any, directory: Path, about: dict[str, Any]) -> None:
    """Write weights (float32; the tied output matrix is left out), configuration, tokenizer and training.json."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        published_name(name): parameter.detach().float().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if name != "lm_head.weight"
    }
    partial = directory / "model.safetensors.partial"
    save_file(weights, str(partial), metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(directory / "model.safetensors")
    save_json(directory)
    save_tokenizer(build_tokenizer(), directory)
    (directory / "training.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
