"""Which folder may import which, and which process imports what: a core, and two programs that use it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coatcheck

PACKAGE = Path(coatcheck.__file__).parent

BASICS = ("errors", "wire", "sockets", "process", "pixels", "tensor_view", "stopwatch", "findings", "forkserver")
ENGINE = (*BASICS, "arena", "delivery.records", "engine.records", "engine.model_files")
# What a folder may import of coatcheck, beside itself. Longest prefix counts; a name stands for all below it.
ALLOWED = {
    "arena": ("errors", "wire", "process"),
    "intake": (*BASICS, "arena"),
    "delivery": (*BASICS, "arena"),
    "engine/model": (*ENGINE, "intake.records", "engine.strategies"),
    "engine/strategies": (*ENGINE, "intake.records"),
    "engine/ranks": (*ENGINE, "intake.records", "delivery", "engine.strategies", "engine.model"),
    "engine/chat": (*ENGINE, "intake", "engine.http.config"),
    "engine/http": (*ENGINE, "intake", "engine.strategies.table"),  # of strategies the names
    "engine/launcher": (*BASICS, "arena", "engine"),
    "integrations": (*BASICS, "arena", "intake", "delivery"),
    "doctor": (*BASICS, "arena", "integrations"),
}  # fmt: skip
CORE = ("arena", "intake", "delivery")
# Libraries by the process that has them: a worker decodes, a rank computes, an event loop does neither.
DECODE = ("PIL", "av")
# In a worker process; and pixels.py, in a function.
WORKER_ONLY = ("intake/worker.py", "intake/media", "engine/chat", "integrations/sglang/image_worker.py")
NO_TORCH = ("arena", "intake/pool.py", "intake/placement.py", "engine/http", "engine/launcher")
FOREIGN = ("fastapi", "uvicorn", "starlette", "sglang", "vllm", "transformers", "PIL", "av", "typer", "rich", "openai")


def files(*places: str) -> Iterator[Path]:
    for place in places:
        path = PACKAGE / place
        found = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        assert found and all(file.exists() for file in found), place
        yield from found


def imports(file: Path) -> set[str]:
    """Modules that a file imports, anywhere in it. ``from a import b`` counts as a.b: b may be a module."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def under(module: str, *prefixes: str) -> bool:
    return any(f"{module}.".startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_what_it_may(folder: str) -> None:
    for file in files(folder):
        place = file.relative_to(PACKAGE).as_posix()
        allowed = (*ALLOWED[folder], folder.replace("/", "."))
        ours = {name.removeprefix("coatcheck.") for name in imports(file) if name.startswith("coatcheck.")}
        wrong = {name for name in ours if not under(name, *allowed) and name != "__version__"}
        assert not wrong, f"{place} imports {wrong}"


def test_the_basics_import_no_folder() -> None:
    for name in BASICS:
        ours = {each.removeprefix("coatcheck.") for each in imports(PACKAGE / f"{name}.py") if "coatcheck" in each}
        assert all(under(each, *BASICS) for each in ours), name


def test_the_engine_and_the_plugin_do_not_import_each_other_nor_does_the_core_a_program() -> None:
    for file in files("engine"):
        assert not any(under(name, "coatcheck.integrations") for name in imports(file)), file
    for file in (*files("integrations", *CORE), *(PACKAGE / f"{name}.py" for name in BASICS)):
        assert not any(under(name, "coatcheck.engine") for name in imports(file)), file


def test_the_core_imports_no_web_framework_no_peer_and_transformers_for_image_processors_only() -> None:
    """In functions, too. ``pixels.py`` makes the processor of the one family of models that the engine serves."""
    for file in (*files(*CORE), *(PACKAGE / f"{name}.py" for name in BASICS)):
        foreign = {name for name in imports(file) if under(name, *FOREIGN)} - {"sys"}
        place = file.relative_to(PACKAGE).as_posix()
        media = place == "pixels.py" or place.startswith("intake/media")
        allowed = (*DECODE, "transformers") if media else ()
        assert not {name for name in foreign if not under(name, *allowed)}, (place, foreign)


def test_no_import_is_relative() -> None:
    for file in PACKAGE.rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not any(node.level for node in nodes), file


def test_every_folder_has_a_rule() -> None:
    places = {file.parent.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py")}
    ruled = (*ALLOWED, "bench", "engine", ".")
    assert all(any(place == rule or place.startswith(f"{rule}/") for rule in ruled) for place in places), places


def test_only_worker_processes_decode() -> None:
    decoders = set(files(*WORKER_ONLY, "pixels.py", "bench", "doctor"))
    for file in PACKAGE.rglob("*.py"):
        if file not in decoders:
            assert not any(under(name, *DECODE) for name in imports(file)), file


def test_an_event_loop_imports_no_torch() -> None:
    for file in files(*NO_TORCH):
        assert not any(under(name, "torch") for name in imports(file)), file


def test_the_core_and_the_plugin_import_without_web_framework_transformers_or_peers() -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {FOREIGN!r}:
            raise ImportError('the core imported ' + name)
sys.meta_path.insert(0, Refuse())
import coatcheck.arena.queue, coatcheck.intake.pool, coatcheck.intake.placement, coatcheck.intake.writer
import coatcheck.delivery.preparer, coatcheck.delivery.readiness, coatcheck.delivery.leases
import coatcheck.engine.strategies.materialize
from coatcheck.integrations.sglang import arena_owner, plugin, prepare, rollcall, settings, support, targets
from coatcheck.engine.strategies.table import STRATEGIES, strategy_named
[strategy_named(name) for name in STRATEGIES]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_launcher_and_the_front_end_do_without_torch() -> None:
    # A second of start-up and 200 MB for a process that touches no tensor; workers and ranks import it for themselves.
    code = "import sys, coatcheck.cli, coatcheck.engine.launcher.serve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
