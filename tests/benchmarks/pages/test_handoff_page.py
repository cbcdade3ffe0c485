"""docs/handoff.md: its tables are what their writer makes of the data, and a claim is one that both runs agree on."""

from __future__ import annotations

import pytest

from benchmarks.handoff.result import HandoffReport, HandoffRun, Quantiles, Stall, StallByRole
from benchmarks.pages.handoff import (
    DOCUMENT,
    F32,
    FIGURES,
    Goal,
    claims,
    disputed,
    entry,
    figures,
    find,
    goal_table,
    ordering_table,
    read,
    ready,
    same_picture_table,
    with_tables,
)


def test_the_tables_are_those_of_the_data() -> None:
    text = DOCUMENT.read_text()
    assert with_tables(text, read()) == text
    assert FIGURES.read_text() == figures(read())


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


def beside(peer: float) -> HandoffReport:
    return report(run(F32, 25.8, 1.0), run("vllm-arena", 25.8, peer), run("memcpy", 25.8, 0.1))


@pytest.mark.parametrize(("peer", "faster"), [(0.5, True), (2.0, False)])
def test_a_claim_says_who_is_faster(peer: float, faster: bool) -> None:
    made = claims(beside(peer))
    assert {cell[3] for cell in made} == {"vllm-arena"}
    assert set(made.values()) == {faster}


@pytest.mark.parametrize("peer", [0.7, 1.5])
def test_what_is_close_is_not_claimed(peer: float) -> None:
    assert claims(beside(peer)) == {}


@pytest.mark.parametrize(("second", "count"), [(0.6, 0), (0.99, 0), (1.01, 4), (2.0, 4)])
def test_the_opposite_in_the_second_run_disputes_a_claim(second: float, count: int) -> None:
    assert len(disputed(beside(0.5), beside(second))) == count


def test_who_is_faster_is_listed_with_both_runs_ratios() -> None:
    head, _, *rows = ordering_table({"first": beside(0.5), "second": beside(0.8)}).splitlines()
    assert head.startswith("In 4 of 4 comparisons")
    rows = rows[2:]
    assert rows[0] == "| agreed | 2 | 25.8 | vllm-arena | 2 x | 1.25 x |"
    assert len(rows) == 4


def test_the_same_picture_is_compared_at_the_bytes_that_each_carries_for_it() -> None:
    made = report(
        run("coatcheck-handle", 25.0, 1.0),
        run("vllm-arena", 25.0, 9.0),
        run("vllm-arena", 5.8, 2.0),
        run("vllm-queue", 5.8, 0.5),
        run("vllm-shm-store", 5.8, 1.0, failed="not installed"),
    )
    rows = same_picture_table({"first": made}).splitlines()[2:]
    assert rows == ["| 2 | first | 1 | 2 (0.5 x) | 0.5 (2 x) | failed |"]
