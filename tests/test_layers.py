"""Who may import whom, and what the core installs without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import coatcheck

PACKAGE = Path(coatcheck.__file__).parent

# A stage imports these, itself, and the interface of its neighbour; only the launcher (and what starts it) sees all.
COMMON = {"errors", "messages", "wire", "process", "private_socket", "pixels", "findings", "views"}
NEIGHBOURS = {
    "frontend": {"arena", "strategies"},  # of strategies the names only, see below
    "strategies": set(),
    "admission": set(),
    "arena": set(),
    "engine": {"strategies"},
    "ranks": {"arena", "strategies", "admission", "engine"},
    "integrations": {"arena", "admission", "ranks"},  # a server of its own kind; of ranks the lane only
    "doctor": {"arena", "integrations"},
}
FOREIGN = ("fastapi", "uvicorn", "starlette", "sglang", "vllm", "transformers", "PIL", "av", "typer", "rich", "openai")


def imports(file: Path) -> set[str]:
    """Parts of coatcheck that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("coatcheck.")}
    return found


@pytest.mark.parametrize("stage", sorted(NEIGHBOURS))
def test_a_stage_imports_its_neighbour_only(stage: str) -> None:
    allowed = COMMON | {stage} | NEIGHBOURS[stage]
    files = sorted((PACKAGE / stage).rglob("*.py"))
    assert files
    for file in files:
        assert imports(file) <= allowed, f"{file.name} imports {imports(file) - allowed}"


def test_the_front_end_knows_the_strategies_names_only() -> None:
    for file in sorted((PACKAGE / "frontend").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and "strategies" in (node.module or ""):
                assert node.module == "coatcheck.strategies.table", file.name


def test_the_common_modules_import_no_stage() -> None:
    for name in COMMON:
        assert imports(PACKAGE / f"{name}.py") <= COMMON


def test_the_core_imports_without_web_framework_transformers_or_peers() -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {FOREIGN!r}:
            raise ImportError('the core imported ' + name)
sys.meta_path.insert(0, Refuse())
import coatcheck, coatcheck.admission, coatcheck.wire, coatcheck.messages, coatcheck.errors
import coatcheck.strategies.materialize
from coatcheck.integrations.sglang import front, leases, plugin, prepare, rollcall, settings, support, targets
from coatcheck.strategies.table import STRATEGIES, strategy_named
[strategy_named(name) for name in STRATEGIES]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_launcher_and_the_front_end_do_without_torch() -> None:
    # A second of start-up and 200 MB for a process that touches no tensor; workers and ranks import it for themselves.
    code = "import sys, coatcheck.cli, coatcheck.launcher.serve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
