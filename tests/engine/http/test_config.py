"""A wrong option is named, with what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coatcheck.engine import model_files
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.errors import ConfigError
from coatcheck.wire import from_argument, to_argument


def make(**options: Any) -> FrontendConfig:
    return FrontendConfig(**{"model_dir": Path("/m"), "model_name": "m", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70000}, "--port: 70000 .* 0 to 65535"),
        ({"workers": 0}, "--workers: 0 .* 1 to 256"),
        ({"max_body_bytes": 0}, "--max-body-bytes"),
        ({"max_images": -1}, "--max-images"),
        ({"job_timeout_s": 0}, "--job-timeout"),
        ({"request_timeout_s": float("nan")}, "--request-timeout"),
        ({"default_max_tokens": 0}, "--default-max-tokens"),
        ({"default_temperature": 3}, "--default-temperature"),
        ({"context": 1}, "--context"),
        ({"model_name": ""}, "--model-name"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_json_round_trip() -> None:
    config = make(max_images=2, context=100, default_temperature=0.5)
    assert from_argument(to_argument(config), FrontendConfig) == config


def test_defaults_from_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 9, "eos_token_id": 4}}')
    assert model_files.context_length(tmp_path, None) == 9
    assert model_files.context_length(tmp_path, 5) == 5
    assert model_files.stop_ids(tmp_path) == (4,)
    assert model_files.default_temperature(tmp_path, None) == 1.0

    def generation(**content: Any) -> None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))

    generation(eos_token_id=[7, 3, 7], temperature=0.2)
    assert model_files.stop_ids(tmp_path) == (3, 7)
    assert model_files.default_temperature(tmp_path, None) == 0.2
    assert model_files.default_temperature(tmp_path, 0.7) == 0.7
    generation(do_sample=False, temperature=0.2)
    assert model_files.default_temperature(tmp_path, None) == 0.0
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match="generation_config"):
        model_files.stop_ids(tmp_path)
