"""docs/handoff.md says what was measured, and claims what both runs agree on."""

from __future__ import annotations

import pytest

from benchmarks.handoff import DOCUMENT, F32, RUNS, Goal, entry, find, goal_table, orderings, read, ready, with_tables
from coatcheck.bench.handoff.contenders import CONTENDERS
from coatcheck.bench.handoff.result import HandoffReport, HandoffRun, Quantiles, Stall, StallByRole


def test_the_tables_are_those_of_the_data() -> None:
    text = DOCUMENT.read_text()
    assert with_tables(text, read()) == text


@pytest.mark.parametrize("name", RUNS)
def test_every_contender_is_in_every_run_with_ours_whole(name: str) -> None:
    if name not in read():
        pytest.skip(f"the {name} run has not been made yet")
    report = read()[name]
    assert {run.contender for run in report.runs} == set(CONTENDERS)
    assert {run.failed for run in report.runs if run.contender.startswith("coatcheck")} == {""}


def test_runs_agree_about_who_is_faster_than_a_handle() -> None:
    runs = list(read().values())
    if len(runs) == 1:
        pytest.skip("there is one run so far")
    assert orderings(runs[0]) == orderings(runs[1])


def run(contender: str, megabytes: float, ms: float, failed: str = "") -> HandoffRun:
    size = round(megabytes * 1e6)
    stall = Stall(ms, ms, ms, ms)
    both, stalls = Quantiles(ms, ms), StallByRole(stall, stall)
    return HandoffRun(
        contender, 2, size, size, both, both, both, stalls, stalls, None, None, both, None, failed, [], []
    )


def report(*runs: HandoffRun) -> HandoffReport:
    return HandoffReport(1, {}, {"rounds": 1}, [], list(runs))


def test_a_goal_is_a_figure_or_a_ratio_and_a_miss_is_bold() -> None:
    made = report(run(F32, 1.02, 1.0), run(F32, 100.3, 2.0), run("vllm-arena", 100.3, 8.0))
    assert Goal("", ready, F32, 100, 0.5, ms=True).value(made, 2) == 2.0
    assert Goal("", ready, F32, 100, 0.5, "vllm-arena").value(made, 2) == 0.25
    assert Goal("", entry, F32, 100, 0.5, F32, 1).value(made, 2) == 2.0
    table = goal_table({"first": made})
    assert "| stall, entry, CPU, largest of all sizes | 0.5 ms | **2 ms** |" in table
    assert "failed" in next(line for line in table.splitlines() if "memcpy, 25 MB" in line)


def test_a_failed_contender_and_another_size_are_not_found() -> None:
    made = report(run("ray", 25.8, 1.0, failed="not installed"), run(F32, 25.8, 1.0))
    assert find(made, "ray", 2, 25) is None
    assert find(made, F32, 2, 100) is None
    assert find(made, F32, 4, 25) is None
    assert find(made, F32, 2, 25) is not None


@pytest.mark.parametrize(("peer", "behind"), [(0.5, True), (2.0, False)])
def test_orderings_name_who_is_faster(peer: float, behind: bool) -> None:
    made = report(run(F32, 25.8, 1.0), run("vllm-arena", 25.8, peer), run("memcpy", 25.8, 0.1))
    assert bool(orderings(made)) is behind
    assert {found[3] for found in orderings(made)} <= {"vllm-arena"}
