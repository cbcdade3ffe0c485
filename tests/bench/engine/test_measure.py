"""The engine benchmark over real ranks and a real server, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coatcheck.engine.strategies.table import NAMES, is_compact
from tests.support.clips import clip, noise

pytestmark = [pytest.mark.timeout(300), pytest.mark.processes]

FEW = ("--requests", "4", "--concurrency", "3", "--rounds", "2", "--output-tokens", "4", "--arena-mib", "64")
SMALL = ("--image", "112x112")


def bench(*options: str, media: tuple[str, ...] = SMALL) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coatcheck", "bench", "engine", *FEW, *media, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def runs(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text())
    assert report["schema"] == 1
    return {run["strategy"]: run for run in report["runs"]}


def test_all_strategies_on_bare_ranks_consume_the_same(tmp_path: Path) -> None:
    done = bench("--input", "tensors", "--runner", "null", "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = runs(tmp_path / "a.json")
    assert list(found) == list(NAMES)
    assert len({run["inputs_sha256"] for run in found.values()}) == 1
    assert len({run["tokens_sha256"] for run in found.values()}) == 1
    for name, run in found.items():
        assert run["inputs_sha256"]
        assert run["tokens_sha256"]
        assert run["failed"] == 0
        assert run["qps"] > 0
        assert run["payload_bytes"] == (64 * 588 if is_compact(name) else 64 * 1176 * 4)
        assert run["stall_ms"]["entry"]["p50"] > 0
        assert run["stall_ms"]["follower"]["p50"] > 0
        assert list(run["materialize_ms"]) == (["0"] if name.startswith("object") else ["0", "1"])
        assert [len(round_["requests"]) for round_ in run["samples"]] == [4, 4]
        assert all(len(request["itl_ms"]) == 3 for round_ in run["samples"] for request in round_["requests"])
        assert set(run["samples"][0]["cpu_seconds"]) == {"rank0", "rank1"}
        phases = {stall["phase"] for stall in run["samples"][0]["stalls"]}
        assert phases >= {"receive", "admit"}
        if name != "auto":  # which goes by what it measured
            assert ("broadcast" in phases) == (not name.startswith("handle")), "a handle needs no second collective"


@pytest.mark.parametrize(
    "options",
    [
        ("--input", "tensors", "--runner", "null"),
        pytest.param(("--input", "http", "--runner", "null"), marks=pytest.mark.slow),
    ],
)
def test_a_video_in_each_request(tmp_path: Path, options: tuple[str, ...]) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(clip(48, picture=noise(64, 48)))
    media = ("--video", str(film), "--strategies", "dict-inline,handle-background")
    done = bench(*options, "--json", str(tmp_path / "a.json"), media=media)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a video (film.mp4)" in done.stdout
    found = runs(tmp_path / "a.json")
    assert len({run["inputs_sha256"] for run in found.values()}) == 1
    for name, run in found.items():
        assert (run["video"], run["failed"]) == ("film.mp4", 0)
        assert run["inputs_sha256"]
        assert run["payload_bytes"] == 2 * 20 * 28 * 1176 * (1 if name == "handle-background" else 4)
        assert run["prompt_tokens"] > 2 * 10 * 14


def test_a_whole_server_and_the_model(tmp_path: Path) -> None:
    html = tmp_path / "a.html"
    options = ("--strategies", "17a57fd86,lazy", "--input", "http", "--html", str(html))
    done = bench(*options, "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = runs(tmp_path / "a.json")
    assert list(found) == ["object-inline", "dict-inline"]
    engine = json.loads((tmp_path / "a.json").read_text())["options"]["engine"]
    assert engine["embedding_cache_bytes"] == 0, "the second strategy would not pay for the pictures"
    assert len({run["inputs_sha256"] for run in found.values()}) == 1
    for run in found.values():
        assert run["inputs_sha256"]
        assert run["failed"] == 0
        assert run["prompt_tokens"] > 16
        assert {"front-end", "worker0", "rank0", "rank1"} <= set(run["samples"][0]["cpu_seconds"])
        assert run["stall_ms"]["entry"]["p50"] > 0
    assert "<svg" in html.read_text()


def test_failures_are_told_and_are_the_exit_status(tmp_path: Path) -> None:
    done = bench(
        "--input",
        "tensors",
        "--runner",
        "null",
        "--strategies",
        "lazy",
        "--kv-tokens",
        "20",
        "--json",
        str(tmp_path / "a.json"),
    )
    assert done.returncode == 1
    assert "KV tokens" in done.stderr
    run = runs(tmp_path / "a.json")["dict-inline"]
    assert run["failed"] == 8
    assert run["latency_ms"] is None
    assert run["inputs_sha256"] == ""


def test_mistakes_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for options, message in (
        (("--strategies", "fastest"), "there is no strategy 'fastest'"),
        (("--runner", "none"), "--runner"),
        (("--tp", "3"), "--tp"),
        (("--video", "made"), "--video: not with --image"),
        (("--json", str(tmp_path / "missing" / "a.json")), "there is no directory"),
    ):
        done = bench(*options)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
