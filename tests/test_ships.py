"""What the two distributions hold: coatcheck without weights and without the repository's benchmarks, and its model."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.test_layers import FOREIGN

ROOT = Path(__file__).parents[1]
CORE_BYTES = 400_000
OF_BENCH = ("__init__.py", "cli.py", "engine/", "serve/", "support/")

pytestmark = pytest.mark.timeout(120)  # building is bounded by itself


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of coatcheck and of its default model, as pip makes them."""
    into = tmp_path_factory.mktemp("wheels")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
    ]
    done = subprocess.run(
        [*command, "--no-build-isolation", "-w", str(into), str(ROOT), str(ROOT / "default_model")],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (core,), (model,) = into.glob("coatcheck-*.whl"), into.glob("coatcheck_default_model-*.whl")
    return core, model


def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def run(code: str, *wheels: Path, into: Path) -> subprocess.CompletedProcess[str]:
    """In an interpreter that has these wheels' contents and our dependencies, and no editable install."""
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(into)
    ours = ("coatcheck", "coatcheck_default_model")
    path = [str(into), *(place for place in sys.path if not any((Path(place or ".") / name).exists() for name in ours))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=into, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_core_is_small_and_has_neither_weights_nor_the_repositorys_benchmarks(wheels: tuple[Path, Path]) -> None:
    core, _ = wheels
    assert core.stat().st_size < CORE_BYTES
    assert {name.split("/")[0].split("-")[0] for name in names(core)} == {"coatcheck"}
    assert not [name for name in names(core) if "default_model" in name or name.endswith((".safetensors", ".json"))]
    bench = [name.removeprefix("coatcheck/bench/") for name in names(core) if name.startswith("coatcheck/bench/")]
    assert bench and all(name.startswith(OF_BENCH) for name in bench)
    for needed in ("coatcheck/py.typed", "coatcheck/bench/support/base.html.j2", "coatcheck/doctor/command.py"):
        assert needed in names(core)


def test_the_model_is_whole_and_nothing_else(wheels: tuple[Path, Path]) -> None:
    _, model = wheels
    files = {path.name for path in (ROOT / "default_model/coatcheck_default_model").iterdir() if path.is_file()}
    assert {Path(name).name for name in names(model) if name.startswith("coatcheck_default_model/")} == files
    assert "model.safetensors" in files


def test_the_extra_serve_brings_the_model_and_the_plugin_does_not(wheels: tuple[Path, Path]) -> None:
    core, _ = wheels
    about = {Path(name).name: zipfile.ZipFile(core).read(name).decode() for name in names(core) if "dist-info/" in name}
    lines = [
        line for line in about["METADATA"].splitlines() if line.startswith("Requires-Dist: coatcheck-default-model")
    ]
    assert {line.partition("; ")[2] for line in lines} == {"extra == 'serve'", "extra == 'bench'"}
    assert "coatcheck = coatcheck.integrations.sglang.plugin:register" in about["entry_points.txt"]


def test_the_plugin_imports_from_the_core_alone(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {(*FOREIGN, "coatcheck_default_model")!r}:
            raise ImportError('the plugin imported ' + name)
sys.meta_path.insert(0, Refuse())
import coatcheck.integrations.sglang.plugin as plugin
assert plugin.__file__.startswith({str(tmp_path)!r}), plugin.__file__
plugin.register
"""
    done = run(code, wheels[0], into=tmp_path)
    assert done.returncode == 0, done.stderr


FIND = "from coatcheck.engine.model.config import DEFAULT_MODEL, EngineConfig; EngineConfig(); print(DEFAULT_MODEL)"


def test_the_default_model_is_found_where_it_is_installed(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(FIND, *wheels, into=tmp_path)
    assert done.stdout.strip() == str(tmp_path / "coatcheck_default_model"), done.stderr


def test_without_it_the_error_says_what_to_install_and_a_model_of_ones_own_will_do(
    wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run(FIND, wheels[0], into=tmp_path)
    assert (
        "ConfigError: --model: the default model is not installed; pip install coatcheck-default-model" in done.stderr
    )
    own = "from pathlib import Path; from coatcheck.engine.model.config import EngineConfig; EngineConfig(Path('own'))"
    done = run(own, wheels[0], into=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_source_distribution_has_the_source_alone(tmp_path: Path) -> None:
    code = f"from hatchling.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)
    (made,) = tmp_path.iterdir()
    with tarfile.open(made) as archive:
        places = {name.split("/")[1] for name in archive.getnames()}
    assert places == {"src", "CHANGELOG.md", "LICENSE", "README.md", "PKG-INFO", "pyproject.toml", ".gitignore"}
    assert made.stat().st_size < CORE_BYTES
