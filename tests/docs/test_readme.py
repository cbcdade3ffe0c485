"""The README is short, and its table has the figures of docs/gpu.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTENDERS = ("whole", "default", "ipc", "resident")  # in the order of the README's columns
GROUP = "`choices-tp1`"
MOST_LINES = 150


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def measured() -> dict[tuple[str, str], list[str]]:
    """Cells of docs/gpu.md's rows, by cell and contender."""
    block = re.search(r"<!-- measured.*?<!-- end of measured", (ROOT / "docs/gpu.md").read_text(), re.S)
    assert block is not None
    (group,) = [part for part in re.split(r"\n(?=`)", block[0]) if part.startswith(GROUP)]
    rows = [cells(line) for line in group.splitlines() if line.startswith("| ")]
    return {(row[0], row[1]): row for row in rows if row[1] in CONTENDERS}


def given() -> list[tuple[str, str, int, str]]:
    """What the README says: cell, figure, which contender, value."""
    found, of = [], ""
    for line in README.splitlines():
        if line.startswith("|") and ("requests/s |" in line or "text p99 gap, ms |" in line):
            row = cells(line)
            of = row[0] or of
            found += [(of, row[1], number, value) for number, value in enumerate(row[2:])]
    return found


def test_it_is_short_and_its_lines_are_readable_as_text() -> None:
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize(("cell", "figure", "column", "value"), given())
def test_a_figure_is_that_of_the_gpu_page(cell: str, figure: str, column: int, value: str) -> None:
    row = measured()[cell, CONTENDERS[column]]
    if figure == "requests/s":
        assert value == row[2].replace("**", "")
        assert "[" in value  # of more than one round
    else:
        assert value == row[5].split(" / ")[1].replace("**", "")


def test_all_contenders_and_every_cell_are_in_the_table() -> None:
    assert {column for _, _, column, _ in given()} == {0, 1, 2, 3}
    assert {cell for cell, *_ in given()} == {cell for cell, _ in measured() if cell != "cell"}


def test_it_leads_to_the_architecture_and_the_decisions() -> None:
    assert "(docs/architecture.md)" in README and "(docs/decisions/README.md)" in README
