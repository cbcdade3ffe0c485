"""Four figures of a report."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from coatcheck.bench.engine.result import Report, RequestSample, Round, Run
from coatcheck.bench.engine.rows import failed_wholly, labels
from coatcheck.bench.support.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LEAST_MS,
    ORANGE,
    SKY,
    VERMILLION,
    WIDTH_IN,
    box,
    legend,
    plain_log_ticks,
    rounds,
    rounds_legend,
    row_axes,
    styled,
)

PHASES = {"receive": GREEN, "broadcast": ORANGE, "deliver": BLUE, "admit": BLACK, "return": SKY}
TIMELINE_S = 2.0


@styled
def stall(report: Report) -> Figure:
    """Box plots of each request's stall, entry rank and followers side by side; logarithmic."""
    title = "Stall of the scheduler's thread per request"
    figure, axes = _rows_of_strategies(report, title, "ms of wall time, logarithmic", height=0.62)
    axes.set_xscale("log")
    roles = [("entry rank", VERMILLION, slice(0, 1)), ("followers", SKY, slice(1, None))]
    if all(run.tp == 1 for run in report.runs):
        del roles[1]
    for at, run in enumerate(report.runs):
        for offset, (_, colour, ranks) in zip((-0.19, 0.19), roles, strict=False):
            values = [max(ms, LEAST_MS) for sample in _succeeded(run) for ms in sample.stall_ms[ranks]]
            box(axes, at + (offset if run.tp > 1 else 0), values, 0.3, colour)
    plain_log_ticks(axes)
    if len(roles) > 1:
        legend(figure, [Patch(facecolor=colour, edgecolor=BLACK, label=name) for name, colour, _ in roles])
    return figure


@styled
def latency(report: Report) -> Figure:
    """Box plots of each request's time from sent to last token."""
    figure, axes = _rows_of_strategies(report, "Latency per request, sent to last token", "ms")
    for at, run in enumerate(report.runs):
        box(axes, at, [sample.latency_ms for sample in _succeeded(run)], 0.5, SKY)
    axes.set_xlim(left=0)
    return figure


@styled
def throughput(report: Report) -> Figure:
    """Requests finished per second: each round, the median round, and the smallest and largest."""
    figure, axes = _rows_of_strategies(report, "Requests finished per second", "requests/s")
    for at, run in enumerate(report.runs):
        if failed_wholly(run):
            continue
        each = [sum(sample.error is None for sample in r.requests) / r.seconds for r in run.samples]
        rounds(axes, at, each, run.qps, run.qps_interval)
    rounds_legend(figure, axes)
    return figure


@styled
def timeline(report: Report) -> Figure:
    """When each rank's scheduler thread was stalled in the middle round, a panel for each strategy."""
    middle = [None if failed_wholly(run) else run.samples[len(run.samples) // 2] for run in report.runs]
    end = min(TIMELINE_S, max((r.seconds for r in middle if r), default=TIMELINE_S))
    heights = [0.24 * run.tp + 0.3 for run in report.runs]
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 1.2))
    figure.suptitle("When the scheduler's threads were stalled", x=0.01, ha="left", weight="bold")
    panels = figure.subplots(len(report.runs), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, label, run, shown in zip(panels, labels(report), report.runs, middle, strict=True):
        _panel(axes, label, run, shown, end)
    panels[-1].set_xlim(0, end)
    panels[-1].set_xlabel("seconds since the round's start")
    legend(figure, [Patch(facecolor=colour, label=phase) for phase, colour in PHASES.items()])
    return figure


def _panel(axes: Axes, label: str, run: Run, shown: Round | None, end: float) -> None:
    """One row per rank, entry rank on top."""
    axes.set_yticks(range(run.tp), ["entry rank", *(f"rank {rank}" for rank in range(1, run.tp))], size=8)
    axes.set_ylim(run.tp - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    if shown is None:
        axes.set_title(f"{label}: failed")
        return
    for rank in range(run.tp):
        stalls = [stall for stall in shown.stalls if stall.rank == rank and stall.start < end]
        stalls.sort(key=lambda stall: stall.wall_ms)  # the longest on top: hairlines must not hide it
        colours = [PHASES.get(stall.phase, GREY) for stall in stalls]
        spans = [(stall.start, stall.wall_ms / 1000) for stall in stalls]
        axes.broken_barh(spans, (rank - 0.36, 0.72), facecolor=colours, edgecolor=colours, lw=0.3)
    until = min(end, shown.seconds)
    share = _covered([(s.start, s.start + s.wall_ms / 1000) for s in shown.stalls if s.rank == 0], until) / until
    axes.set_title(f"{label}, round {shown.round}: entry rank stalled {100 * share:.0f} % of the time shown")
    if until < end:
        axes.axvspan(until, end, color="#EEEEEE", lw=0)


def _covered(spans: Sequence[tuple[float, float]], until: float) -> float:
    """Length of the spans' union before ``until``."""
    covered = reached = 0.0
    for start, stop in sorted(spans):
        covered += max(0.0, min(stop, until) - max(start, reached))
        reached = max(reached, min(stop, until))
    return covered


def _rows_of_strategies(report: Report, title: str, unit: str, height: float = 0.42) -> tuple[Figure, Axes]:
    """Axes with a row per strategy, first on top; one that failed wholly says so in its row."""
    remarks = ["failed" if failed_wholly(run) else "" for run in report.runs]
    return row_axes(labels(report), remarks, title, unit, height)


def _succeeded(run: Run) -> list[RequestSample]:
    return [sample for r in run.samples for sample in r.requests if sample.error is None]
