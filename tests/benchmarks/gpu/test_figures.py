"""Ratios, and when carry missed a goal."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.gpu.figures import (
    LATENCIES,
    Spread,
    base,
    best_installed,
    cells,
    contenders,
    gap,
    misses,
    over,
    rate,
    ratio,
    runs,
    spread,
)
from coatcheck.bench.serve.result import Report
from tests.benchmarks.gpu.conftest import MakeRun

CELL = (32, 1, 1024)
Make = Callable[..., Report]


def test_a_spread_leaves_out_what_is_not_known() -> None:
    found = spread([1.0, None, 3.0])
    assert found is not None
    assert (found.mean, found.least, found.most, found.width) == (2.0, 1.0, 3.0, 2.0)
    assert spread([None]) is None


def test_ratios_are_within_a_round(run: MakeRun, report: Make) -> None:
    made = report(
        run("carry", 1, 10.0), run("hash", 1, 5.0), run("carry", 2, 30.0), run("hash", 2, 10.0), run("carry", 3)
    )
    found = ratio(made, "hash", CELL, rate)
    assert found is not None
    assert (found.least, found.most) == (2.0, 3.0)
    assert ratio(made, "ipc", CELL, rate) is None


def test_what_was_measured_and_by_whom(run: MakeRun, report: Make) -> None:
    other = (96, 4, 1024)
    made = report(run("carry", 2), run("carry", 1), run("default", 1, cell=other))
    assert cells(made) == [CELL, other]
    assert contenders(made) == ["carry", "default"]
    assert [one.round for one in runs(made, "carry", CELL)] == [1, 2]
    assert over(made, "default", CELL, rate) is None


def test_the_best_installed_is_the_faster_one(run: MakeRun, report: Make) -> None:
    made = report(run("carry"), run("default", rate=9.0), run("hash", rate=9.5), run("ipc", rate=99.0))
    assert best_installed(made, CELL) == "hash"
    assert best_installed(report(run("carry"), run("ipc")), CELL) is None


def test_worse_within_the_spread_is_no_miss(run: MakeRun, report: Make) -> None:
    others = run("default", 1, 10.0), run("default", 2, 12.0)
    assert misses(report(run("carry", 1, 9.0), run("carry", 2, 10.0), *others), CELL) == []
    assert misses(report(run("carry", 1, 8.0), run("carry", 2, 9.0), *others), CELL) == ["requests/s"]


def test_every_latency_is_compared(run: MakeRun, report: Make) -> None:
    made = report(run("carry", latency=1001.0), run("default", latency=1000.0))
    assert misses(made, CELL) == ["latency p50", "latency p99", "TTFT p50", "TTFT p99"]
    assert LATENCIES["health p99"](run("carry")) is None  # not asked for: nothing to miss


def test_the_gap_is_compared_with_all_contenders(run: MakeRun, report: Make) -> None:
    made = report(run("carry", gap=112.0), run("ipc", gap=100.0))
    assert misses(made, CELL) == ["text gap p99"]
    assert misses(report(run("carry", gap=109.0), run("ipc", gap=100.0)), CELL) == []
    assert gap(run("carry", gap=7.0)) == 7.0


def test_without_carry_there_is_nothing_to_say(run: MakeRun, report: Make) -> None:
    assert misses(report(run("default")), CELL) == []


def test_ratios_are_of_mode_whole_where_it_was_measured(run: MakeRun, report: Make) -> None:
    made = report(run("whole", rate=30.0), run("carry", rate=15.0), run("default", rate=10.0))
    assert base(made) == "whole"
    assert ratio(made, "carry", CELL, rate) == Spread(2.0, 2.0, 2.0)
    assert base(report(run("carry"), run("default"))) == "carry"
