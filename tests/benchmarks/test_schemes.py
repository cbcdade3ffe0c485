"""The analysis says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.schemes import cases
from benchmarks.schemes_report import read, replaced, with_tables

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tables_of_the_analysis_are_those_of_its_data() -> None:
    text = (DOCS / "analysis.md").read_text()
    reports = read(DOCS / "benchmarks/data")
    assert set(reports) == {case.name for case in cases()}
    assert with_tables(text, reports) == text


def test_every_case_compared_equal_inputs() -> None:
    for name, report in read(DOCS / "benchmarks/data").items():
        assert len({run.inputs_sha256 for run in report.runs} - {""}) == 1, name
        assert [run.failures for run in report.runs] == [{}] * 4, name


def test_a_table_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table speed"):
        replaced("nothing here", "speed", "| |")
