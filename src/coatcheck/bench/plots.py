"""Four figures of a report. Needs matplotlib; nothing of its global state is kept changed.

Colours are Okabe and Ito's, told apart by colour-blind readers and, by lightness, in print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from coatcheck.bench.result import Report, RequestSample, Round, Run
from coatcheck.bench.rows import failed_wholly, labels

ORANGE, SKY, BLUE, VERMILLION, GREEN, BLACK, GREY = (
    *("#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#009E73", "#000000", "#999999"),
)
PHASES = {"receive": GREEN, "broadcast": ORANGE, "deliver": BLUE, "admit": BLACK, "return": SKY}
WIDTH_IN = 9.0
LEAST_MS = 0.001  # where a logarithmic axis draws what is below it
TIMELINE_S = 2.0
styled = matplotlib.rc_context(
    {
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#DDDDDD",
        "axes.axisbelow": True,
        "figure.constrained_layout.use": True,
        "figure.titlesize": 12,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "coatcheck",
    }
)


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


@styled
def svg(figure: Figure, name: str) -> str:
    """The figure as an element for a page: text stays text, ids begin with ``name``, the same figure gives the same.

    Ids that are hashes are numbered instead, in order: some of matplotlib's are of memory addresses.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    made = buffer.getvalue()
    numbers: dict[str, int] = {}

    def renamed(found: re.Match[str]) -> str:
        number = numbers.setdefault(found[2], len(numbers)) if re.fullmatch("[a-z][0-9a-f]{10}", found[2]) else None
        return f"{found[1]}{name}-{found[2] if number is None else number}"

    return re.sub(r'(\bid="|href="#|url\(#)([^")]+)', renamed, made[made.index("<svg") :])


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


def row_axes(
    names: Sequence[str], remarks: Sequence[str], title: str, unit: str, height: float = 0.42
) -> tuple[Figure, Axes]:
    """Axes with a row per name, first on top; ``remarks`` stand in their rows, where they are not empty."""
    figure = Figure(figsize=(WIDTH_IN, height * len(names) + 1.2))
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
    axes.grid(axis="x")
    for at, remark in enumerate(remarks):
        if remark:
            axes.text(0.01, at, remark, transform=axes.get_yaxis_transform(), va="center", color=VERMILLION)
    return figure, axes


def rounds(axes: Axes, at: float, each: Sequence[float], median: float, interval: tuple[float, float]) -> None:
    """A row: the median round, the smallest and largest, and below them each round."""
    axes.plot(interval, (at, at), "|-", color=BLUE, ms=10, mew=1.5, lw=1.5)
    axes.plot(median, at, "o", color=BLUE, ms=8)
    axes.plot(each, [at + 0.27] * len(each), "o", color=BLACK, ms=3, alpha=0.6, mew=0)


def rounds_legend(figure: Figure, axes: Axes) -> None:
    """Of what ``rounds`` has drawn, from 0 on."""
    axes.set_xlim(left=0)
    dot = Line2D([], [], marker="o", color=BLUE, ms=8, lw=1.5, label="median round, smallest to largest")
    each_dot = Line2D([], [], marker="o", color=BLACK, ms=3, lw=0, alpha=0.6, label="each round")
    legend(figure, [dot, each_dot])


def box(axes: Axes, at: float, values: list[float], width: float, colour: str) -> None:
    """Quartiles, whiskers at the 1st and 99th percentile, dots beyond."""
    if values:
        axes.boxplot(
            [values],
            positions=[at],
            widths=width,
            orientation="horizontal",
            whis=(1, 99),
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": colour, "lw": 0.8},
            medianprops={"color": BLACK, "lw": 2},
            flierprops={"marker": ".", "ms": 3, "mfc": GREY, "mec": GREY},
        )


def _succeeded(run: Run) -> list[RequestSample]:
    return [sample for r in run.samples for sample in r.requests if sample.error is None]


def plain_log_ticks(axes: Axes) -> None:
    """0.1, 1, 10 rather than powers; 1, 2, 5 of each decade where there are few, and even steps within one."""
    low, high = axes.get_xlim()
    even = matplotlib.ticker.MaxNLocator(6, steps=[1, 2, 5, 10])
    decades = matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,), numticks=30)
    axes.xaxis.set_major_locator(even if high < 8 * low else decades)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def legend(figure: Figure, handles: Sequence[Patch | Line2D]) -> None:
    """Above the axes, beside the title, so that it covers no data."""
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
