"""The model's dimensions, and what the arithmetic allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import bound, model
from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.errors import ConfigError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model")
    model.write(DEFAULT_MODEL, target, "7b")
    return target


def test_a_directory_without_weights(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert (directory / "tokenizer.json").read_bytes() == (DEFAULT_MODEL / "tokenizer.json").read_bytes()
    assert not list(directory.glob("*.safetensors"))
    assert config["text_config"]["hidden_size"] == config["vision_config"]["out_hidden_size"] == 3584
    assert sum(config["text_config"]["rope_scaling"]["mrope_section"]) == 64  # half of a head


def test_an_unknown_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed are 7b, tiny"):
        model.write(DEFAULT_MODEL, tmp_path, "8b")


@pytest.mark.parametrize(("side", "patches"), [(1024, 74 * 74), (448, 32 * 32), (10, 4)])
def test_patches_as_the_processor_rounds(side: int, patches: int) -> None:
    assert bound.patches(side) == patches


def test_a_request_of_one_picture_costs_what_its_weights_say(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    one = bound.work(config, 1400, 1, 1024, 32)
    # 6.5 billion weights in layers, twice a token; 0.63 billion in the tower, twice a patch; attention on top.
    assert one.language == pytest.approx(2 * 6.53e9 * 1432, rel=0.06)
    assert one.vision == pytest.approx(2 * 0.63e9 * 5476, rel=0.15)
    four = bound.work(config, 5560, 4, 1024, 32)
    assert four.vision == 4 * one.vision
    assert 3.9 < four.language / one.language < 4.3


def test_cards() -> None:
    assert bound.peak("NVIDIA H100 80GB HBM3") == 989.4e12
    assert bound.peak("NVIDIA T4") is None
