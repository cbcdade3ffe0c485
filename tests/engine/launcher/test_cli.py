"""The command line's answers to a user's mistakes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import coatcheck
from coatcheck.engine.config import ADMIN_TOKEN, ServeConfig
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.model.config import DEFAULT_MODEL, EngineConfig
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.ranks.settings import RankSettings
from coatcheck.errors import ConfigError

pytestmark = pytest.mark.processes


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coatcheck", *arguments], capture_output=True, text=True, timeout=19, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "fast"], "handle-inline, handle-background, auto, 17a57fd86"),
        (["--tp", "3"], "3 ranks do not divide the model's num_attention_heads (4)"),
        (["--tp", "0"], "--tp: 0 ranks; allowed: 1 to 64"),
        (["--model", "/nowhere"], "--model: /nowhere has no config.json"),
        (["--workers", "0"], "--workers: 0 is not allowed"),
        (["--device", "tpu"], "--device: 'tpu' is not one of auto, cpu, cuda"),
        (["--kv-tokens", "0"], "--kv-tokens: 0 is less than 1"),
        (["--embedding-cache-mib", "-1"], "--embedding-cache-mib: -1 is less than 0"),
        (["--heartbeat", "100"], "--heartbeat: 100 s is more than half of --group-timeout (120 s)"),
        (["--chunk-tokens", "4"], "--chunk-tokens: 4 is less than --max-running (16)"),
        (["--auto-threshold-kib", "-1"], "--auto-threshold-kib: -1 is less than 0"),
        (["--auto-timing", "fast"], "--auto-timing: 'fast' is not one of measured, inline, background"),
        (["--admin-token", ""], "--admin-token or COATCHECK_ADMIN_TOKEN: allowed: printable ASCII, no spaces"),
        (["--admin-token", " \t"], "--admin-token or COATCHECK_ADMIN_TOKEN: allowed: printable ASCII, no spaces"),
    ],
)
def test_an_impossible_option_is_named_with_what_is_allowed(arguments: list[str], message: str) -> None:
    done = run("serve", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    done = run("serve", "--model", str(tmp_path))
    assert done.returncode == 2
    assert "is a 'llama' model; supported: qwen2_5_vl" in done.stderr


def test_kv_heads_that_the_ranks_do_not_divide(tmp_path: Path) -> None:
    config = json.loads((DEFAULT_MODEL / "config.json").read_text())
    config["num_key_value_heads"] = config["text_config"]["num_key_value_heads"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = run("serve", "--model", str(tmp_path), "--tp", "2")
    assert done.returncode == 2
    assert "2 ranks do not divide the model's num_key_value_heads (1)" in done.stderr


@pytest.mark.parametrize("token", ["", " ", "two words", "t\u00f6ken"])
def test_a_token_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv(ADMIN_TOKEN, token)
    done = run("serve")
    assert done.returncode == 2
    assert ADMIN_TOKEN in done.stderr
    assert not token.strip() or token not in done.stderr


def test_the_token_is_not_shown_with_the_options() -> None:
    frontend = FrontendConfig(model_dir=DEFAULT_MODEL, model_name="m")
    config = ServeConfig(frontend, EngineConfig(), RankConfig(), admin_token="not-for-a-log")
    assert "not-for-a-log" not in repr(config)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot listen on" in done.stderr


def test_version() -> None:
    assert run("--version").stdout.strip() == coatcheck.__version__


def test_settings_survive_the_command_line() -> None:
    settings = RankSettings(EngineConfig(max_running=3), RankConfig(heartbeat_s=7), "ipc:///a", "ipc:///b")
    assert RankSettings.decode(settings.encode()) == settings
    with pytest.raises(ConfigError, match="--max-running"):
        EngineConfig(max_running=0)
