"""config.json, read without transformers: what it says is what transformers reads from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.model_files import model_config
from coatcheck.errors import ConfigError

DEFAULT: dict[str, Any] = json.loads((DEFAULT_MODEL / "config.json").read_text())

# As Qwen/Qwen2.5-VL-3B-Instruct's: the language model's settings at the top, some of the vision tower's left out.
FLAT: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "vocab_size": 151936,
    "num_attention_heads": 16,
    "vision_config": {"depth": 32, "in_chans": 3, "spatial_patch_size": 14, "tokens_per_second": 2},
}


@pytest.mark.parametrize("config", [DEFAULT, FLAT, {"model_type": "qwen2_5_vl"}], ids=["default", "flat", "bare"])
def test_the_settings_are_those_that_transformers_reads(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    own, theirs = model_config(tmp_path), AutoConfig.from_pretrained(tmp_path)
    names = own.vision_config.__struct_fields__
    assert [getattr(own.vision_config, name) for name in names] == [getattr(theirs.vision_config, n) for n in names]
    assert own.text_config.vocab_size == theirs.text_config.vocab_size
    assert (own.image_token_id, own.video_token_id) == (theirs.image_token_id, theirs.video_token_id)


def test_the_width_of_a_patch() -> None:
    assert model_config(DEFAULT_MODEL).patch_width == 3 * 2 * 14 * 14


def test_a_setting_of_the_wrong_kind_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEFAULT | {"image_token_id": "<|image_pad|>"}))
    with pytest.raises(ConfigError, match=r"--model: .*image_token_id"):
        model_config(tmp_path)


def test_ranks_without_a_model_import_no_transformers() -> None:
    # Its import takes longer than all else that a rank does before it is ready.
    code = f"""
import sys, coatcheck.engine.ranks.main
from coatcheck.engine.model_files import model_config
from coatcheck.pixels import PixelTable
from pathlib import Path
model_config(Path({str(DEFAULT_MODEL)!r})), PixelTable.read(Path({str(DEFAULT_MODEL)!r}))
sys.exit("transformers" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
