"""A contender's figures in one cell of one group, over the rounds; the plugin's ratios to others; what it missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.gpu import plan
from coatcheck.bench.serve.result import Report, Run

CellKey = tuple[int, int, int]  # clients, images, side
Figure = Callable[[Run], float | None]
INSTALLED = ("default", "hash")  # what a user has without us: the best of these is not to be missed
GAP_GOAL = 1.1  # times the best p99 gap in the text streams of all contenders

LATENCIES: dict[str, Figure] = {
    "latency p50": lambda run: run.latency_ms.p50 if run.latency_ms else None,
    "latency p99": lambda run: run.latency_ms.p99 if run.latency_ms else None,
    "TTFT p50": lambda run: run.ttft_ms.p50 if run.ttft_ms else None,
    "TTFT p99": lambda run: run.ttft_ms.p99 if run.ttft_ms else None,
    "probe p99": lambda run: run.probe_ms.p99 if run.probe_ms else None,
    "health p99": lambda run: run.health_ms.p99 if run.health_ms else None,
}
RATE, GAP = "requests/s", "text gap p99"


def rate(run: Run) -> float | None:
    """Requests/s."""
    return run.requests_per_s


def gap(run: Run) -> float | None:
    """p99 of the gaps in text streams, ms."""
    return run.text_gap_ms.p99 if run.text_gap_ms else None


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    mean: float
    least: float
    most: float

    @property
    def width(self) -> float:
        """Between the rounds that lie furthest apart."""
        return self.most - self.least


def spread(values: Sequence[float | None]) -> Spread | None:
    """None if there is no value."""
    known = [value for value in values if value is not None]
    return Spread(statistics.fmean(known), min(known), max(known)) if known else None


def cells(report: Report) -> list[CellKey]:
    """In the plan's order, as far as the runs go."""
    return list(dict.fromkeys((run.clients, run.images, run.side) for run in report.runs))


def contenders(report: Report) -> list[str]:
    """As the group has them, those that were measured."""
    measured = {run.contender for run in report.runs}
    return [name for name in report.options["group"]["contenders"] if name in measured]


def base(report: Report) -> str:
    """The contender whose figures are divided by the others': the plugin, mode ``whole`` where it was measured."""
    return plan.base(contenders(report)) or plan.BASES[-1]


def runs(report: Report, contender: str, cell: CellKey) -> list[Run]:
    """By round."""
    found = [run for run in report.runs if run.contender == contender and (run.clients, run.images, run.side) == cell]
    return sorted(found, key=lambda run: run.round)


def over(report: Report, contender: str, cell: CellKey, figure: Figure) -> Spread | None:
    """Of its runs in the cell."""
    return spread([figure(run) for run in runs(report, contender, cell)])


def ratio(report: Report, other: str, cell: CellKey, figure: Figure) -> Spread | None:
    """The plugin's figure over the other's, round by round: what was measured side by side is compared."""
    ours = {run.round: figure(run) for run in runs(report, base(report), cell)}
    theirs = {run.round: figure(run) for run in runs(report, other, cell)}
    values = []
    for number in ours.keys() & theirs.keys():
        mine, other_s = ours[number], theirs[number]
        values.append(mine / other_s if mine is not None and other_s else None)
    return spread(values)


def best_installed(report: Report, cell: CellKey) -> str | None:
    """The faster of SGLang's own settings in the cell, by requests/s; None where the group has none."""
    measured = [(over(report, name, cell, rate), name) for name in INSTALLED if runs(report, name, cell)]
    return max(((found.mean, name) for found, name in measured if found), default=(0.0, None))[1]


def misses(report: Report, cell: CellKey) -> list[str]:
    """The goals that the plugin missed in the cell: names of figures, empty if it missed none or nothing is known.

    A figure is missed if it is worse than the best of SGLang's own settings by more than the spread: the wider of the
    two contenders' over the rounds. The text streams' p99 gap may be 1.1 times the best of all contenders.
    """
    found: list[str] = []
    plugin = base(report)
    ours = over(report, plugin, cell, rate)
    if ours is None:
        return found
    rivals = [other for name in INSTALLED if (other := over(report, name, cell, rate))]
    if any(other.mean - ours.mean > max(ours.width, other.width) for other in rivals):
        found.append(RATE)
    for name, figure in LATENCIES.items():
        mine = over(report, plugin, cell, figure)
        theirs = [other for rival in INSTALLED if (other := over(report, rival, cell, figure))]
        if theirs and (mine is None or any(mine.mean - one.mean > max(mine.width, one.width) for one in theirs)):
            found.append(name)
    gaps = [(other.mean, name) for name in contenders(report) if (other := over(report, name, cell, gap))]
    mine = over(report, plugin, cell, gap)
    if gaps and (mine is None or mine.mean > GAP_GOAL * min(gaps)[0]):
        found.append(GAP)
    return found
