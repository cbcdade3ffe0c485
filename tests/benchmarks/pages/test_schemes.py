"""The analysis says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages.schemes import cases
from benchmarks.pages.schemes_report import read, with_tables
from benchmarks.support.documents import replaced

DOCS = Path(__file__).parents[3] / "docs"


def test_the_tables_of_the_analysis_are_those_of_its_data() -> None:
    text = (DOCS / "analysis.md").read_text()
    reports = read(DOCS / "benchmarks/data")
    assert set(reports) == {case.name for case in cases()}
    assert with_tables(text, reports) == text


def test_a_table_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table speed"):
        replaced("nothing here", "speed", "| |", "pages.schemes")
