"""The plugin's hooks on SGLang's own classes, real ranks over gloo; see ``tests/support/sglang_team.py``.

SGLang's environment has no pytest: its interpreter runs the scenarios, and their outcomes are looked at here.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("COATCHECK_TEST_SGLANG", ROOT / ".peers/sglang/bin/python"))
TEAM = ROOT / "tests/support/sglang_team.py"
START_S = 480  # every process imports SGLang first, which takes ten seconds and more on a busy machine

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason=f"there is no {PYTHON}: make .peers/sglang/installed"),
    pytest.mark.timeout(START_S + 20),
]


def scenarios() -> list[str]:
    """In the order in which they run; read, as they cannot be imported without SGLang."""
    for node in ast.parse(TEAM.read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "SCENARIOS":
            assert isinstance(node.value, ast.List)
            return [ast.unparse(name) for name in node.value.elts]
    raise AssertionError("there are no scenarios")


@cache
def outcomes(ranks: int) -> dict[str, str | None]:
    """By scenario; the first that fails is the last that ran."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-m", "tests.support.sglang_team", str(ranks)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.stdout, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("scenario", scenarios())
@pytest.mark.parametrize("ranks", [2, 4], ids=lambda ranks: f"tp{ranks}")
def test_on_real_ranks(ranks: int, scenario: str) -> None:
    found = outcomes(ranks)
    assert scenario in found, f"not run: {list(found)[-1]} failed"
    assert found[scenario] is None, found[scenario]
