"""The page about handles says what was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.pages.handles import cases
from benchmarks.pages.handles_report import all_strategies, joined, stall, with_tables
from benchmarks.pages.schemes_report import read

DOCS = Path(__file__).parents[3] / "docs"
DATA = DOCS / "benchmarks/handles"


def test_the_tables_are_those_of_the_data() -> None:
    text = (DOCS / "handles.md").read_text()
    assert with_tables(text, read(DATA)) == text


def test_every_case_has_a_file() -> None:
    assert {name.removesuffix("-16cores") for name in read(DATA)} == {case.name for case in cases()}


def test_parts_are_one_case_and_what_is_in_several_has_their_range() -> None:
    parts = [report for name, report in read(DATA).items() if name.startswith("images-tp4-c100-")]
    (whole,) = [run for run in joined(parts).runs if run.strategy == "handle-background"]
    found = sorted(run.qps for part in parts for run in part.runs if run.strategy == "handle-background")
    assert len(found) == 4
    assert whole.qps_interval == (found[0], found[-1])
    assert found[0] < whole.qps == (found[1] + found[2]) / 2 < found[-1]


def test_the_plot_has_a_panel_for_each_workload() -> None:
    chosen = all_strategies(read(DATA))
    assert len(stall(chosen).axes) == sum(report.runs[0].concurrency == 16 for report in chosen.values())
