"""docs/architecture.md: what its pictures, its glossary and its sentences name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/coatcheck"
PAGE = (ROOT / "docs/architecture.md").read_text()
PICTURES = ("engine-path.svg", "sglang-path.svg")
GLOSSARY = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.partition("## Glossary")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| word")
]


def defined(file: Path) -> set[str]:
    """Names of a module's classes, functions and constants."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("row", GLOSSARY, ids=[row[0] for row in GLOSSARY])
def test_what_the_glossary_names_is_in_the_code(row: list[str]) -> None:
    assert len(row) == 5
    if row[4]:
        file, name = re.fullmatch(r"`([\w/]+\.py)` `(\w+)`", row[4]).groups()  # type: ignore[union-attr]
        assert name in defined(PACKAGE / file)


def test_a_word_stands_once() -> None:
    words = [word.removeprefix("to ") for row in GLOSSARY for word in row[0].split(", ")]
    assert len(words) == len(set(words)) > 25


@pytest.mark.parametrize("picture", PICTURES)
def test_each_hop_of_a_picture_has_files_that_exist(picture: str) -> None:
    text = (ROOT / "docs" / picture).read_text()
    assert f"]({picture})" in PAGE
    named = re.findall(r"[\w/]+\.py", text)
    assert len(named) > 10
    assert [name for name in named if not (PACKAGE / name).exists()] == []
    hops = re.findall(r"<circle", text)
    assert len(re.findall(r"monospace", text)) >= len(hops) > 10


def test_files_and_folders_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`((?:[\w]+/)+(?:\w+\.py)?)`", PAGE)) | set(re.findall(r"`(\w+\.py)`", PAGE))
    assert len(named) > 30
    modules = {path.name for path in PACKAGE.rglob("*.py")}
    there = {name for name in named if (PACKAGE / name).exists() or (ROOT / name).exists() or name in modules}
    assert named - there - {"media/"} == set()


def test_every_folder_of_the_package_has_a_line() -> None:
    listed = {name.rstrip("/") for name in re.findall(r"^\| `([\w/]+/)` \|", PAGE, re.M)}
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    missing = {
        folder
        for folder in folders - {"engine", "integrations"}
        if not any(folder == name or folder.startswith(f"{name}/") for name in listed)
    }
    assert missing == set()
