"""Files and commands that the documents name are there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PLACES = [ROOT, ROOT / "src/coatcheck", ROOT / "src/coatcheck/integrations/sglang", ROOT / "tests/engine"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    files = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|json|md|svg))`", text))
    assert {name for name in files if not any((place / name).exists() for place in PLACES)} == set()
    modules = set(re.findall(r"python -m ((?:benchmarks|training)[\w.]*)", text))
    assert {name for name in modules if find_spec(name) is None} == set()


def test_there_are_some() -> None:
    assert len(PAGES) > 25
