"""The page about handles says what was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.handles import cases
from benchmarks.handles_report import all_strategies, joined, stall, with_tables
from benchmarks.schemes_report import read
from coatcheck.engine.strategies.table import NAMES

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "benchmarks/handles"


def test_the_tables_are_those_of_the_data() -> None:
    text = (DOCS / "handles.md").read_text()
    assert with_tables(text, read(DATA)) == text


def test_every_file_is_of_a_case_and_compared_equal_inputs_without_a_failure() -> None:
    reports = read(DATA)
    assert {name.removesuffix("-16cores") for name in reports} == {case.name for case in cases()}
    for name, report in reports.items():
        assert len({run.inputs_sha256 for run in report.runs} - {""}) == 1, name
        assert {reason for run in report.runs for reason in run.failures} == set(), name
    for name, report in all_strategies(reports).items():
        assert [run.strategy for run in report.runs] == list(NAMES), name
        assert len({run.inputs_sha256 for run in report.runs}) == 1, name


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
