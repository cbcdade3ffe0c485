"""docs/site/hooks.py: a link out of docs/ gets a page, and a link to nothing ends the build."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mkdocs.utils.yaml import yaml_load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A small repository with the real hooks and the real rules of validation, of which every link holds."""
    real = yaml_load((ROOT / "mkdocs.yml").read_text())
    config = {name: real[name] for name in ("docs_dir", "site_dir", "strict", "hooks", "exclude_docs", "validation")}
    config |= {"site_name": "small", "theme": "mkdocs", "plugins": [], "use_directory_urls": False}
    config["nav"] = [{"Home": "index.md"}, {"Page": "page.md"}]
    (tmp_path / "docs/site").mkdir(parents=True)
    shutil.copy(ROOT / "docs/site/hooks.py", tmp_path / "docs/site")
    (tmp_path / "mkdocs.yml").write_text(json.dumps(config))  # JSON is YAML
    (tmp_path / "src").mkdir()
    (tmp_path / "src/code.py").write_text("one = 1\n")
    (tmp_path / "src/README.md").write_text("# About\n\n[the code](code.py), [home](../README.md#part)\n")
    (tmp_path / "README.md").write_text("# Small\n\n## Part\n\n[page](docs/page.md#there), [folder](src)\n")
    (tmp_path / "docs/page.md").write_text("# Page\n\n## There\n\n[home](../README.md), [code](../src/code.py)\n")
    return tmp_path


def build(site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"],
        cwd=site,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )


def test_the_readme_is_the_home_page_and_what_is_linked_to_becomes_a_page(site: Path) -> None:
    done = build(site)
    assert done.returncode == 0, done.stderr
    built = site / "build/site"
    assert 'href="page.html#there"' in (built / "index.html").read_text()
    assert 'href="repository/src/index.html"' in (built / "index.html").read_text()
    assert 'href="repository/src/code.py.html"' in (built / "page.html").read_text()
    assert 'href="code.py.html"' in (built / "repository/src/index.html").read_text()
    assert 'href="../../index.html#part"' in (built / "repository/src/index.html").read_text()
    assert "one = 1" in (built / "repository/src/code.py.html").read_text()


@pytest.mark.parametrize(
    ("file", "link"),
    [
        ("README.md", "docs/nothing.md"),
        ("README.md", "src/nothing.py"),
        ("README.md", "docs/page.md#nowhere"),
        ("docs/page.md", "../src/nothing.py"),
        ("docs/page.md", "../README.md#nowhere"),
        ("docs/page.md", "#nowhere"),
        ("src/README.md", "nothing.py"),
    ],
)
def test_a_link_to_nothing_ends_the_build(site: Path, file: str, link: str) -> None:
    with (site / file).open("a") as page:
        page.write(f"\n[broken]({link})\n")
    done = build(site)
    assert done.returncode != 0
    assert link.partition("#")[2] in done.stderr and "WARNING" in done.stderr


def test_a_page_that_the_navigation_does_not_name_ends_the_build(site: Path) -> None:
    (site / "docs/other.md").write_text("# Other\n")
    done = build(site)
    assert done.returncode != 0
    assert "other.md" in done.stderr
