"""SGLang without its server: an Engine in a process of somebody's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.sglang.server import CPU_ENVIRONMENT, PEERS, binding
from training.evaluate import DEFAULT_MODEL

ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0
IMAGE = ROOT / "src/coatcheck/engine/launcher/example.png"


@pytest.mark.timeout(LIMIT_S + 20)
def test_an_engine_that_is_shut_down_gives_everything_back() -> None:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [PEERS / "sglang/bin/python", "-m", "tests.support.sglang_engine", str(DEFAULT_MODEL), str(IMAGE)],
        env={**os.environ, **CPU_ENVIRONMENT, "SGLANG_CPU_OMP_THREADS_BIND": binding(2), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["answer"]
    assert len(seen["during"]["arenas"]) >= 1
    assert "coatcheck-reports" in seen["during"]["threads"]
    assert seen["after"] == {"arenas": [], "threads": []}
