"""One figure for docs/gpu.md: requests/s and the text streams' p99 gap of every contender in every cell."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.gpu.figures import Figure, cells, contenders, gap, over, rate
from coatcheck.bench.serve.result import Report
from coatcheck.bench.support.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, styled

LOOK = {  # colour, marker
    "whole": (BLUE, "o"),
    "carry": (PURPLE, "p"),
    "default": (VERMILLION, "s"),
    "hash": (ORANGE, "D"),
    "ipc": (GREEN, "^"),
    "flag": (SKY, "v"),
    "resident": (GREY, "x"),
}
ROW_IN, FRAME_IN, WIDTH_IN = 0.4, 1.1, 10.0
APART = 0.18  # contenders of a row, in rows


@styled
def overview(reports: dict[str, Report]) -> Drawing:
    """A row for each group's cell, a marker for each contender over its rounds' range. Reports: at least one."""
    rows = [(name, report, cell) for name, report in reports.items() for cell in cells(report)]
    figure = Drawing(figsize=(WIDTH_IN, FRAME_IN + ROW_IN * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    seen: dict[str, Line2D] = {}
    for at, (_, report, cell) in enumerate(rows):
        names = contenders(report)
        for place, name in enumerate(names):
            height = at + APART * (place - (len(names) - 1) / 2)
            for axes, figure_ in ((left, rate), (right, gap)):
                if (drawn := _mark(axes, height, report, name, cell, figure_)) is not None:
                    seen.setdefault(name, drawn)
    left.set_yticks(range(len(rows)), [f"{name}: {c[0]} x {c[1]} of {c[2]}" for name, _, c in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    for axes, title in ((left, "requests/s"), (right, "p99 gap in text streams, ms (logarithmic)")):
        axes.set_title(title)
        axes.grid(axis="x")
    left.set_xlim(left=0)
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(list(seen.values()), list(seen), loc="outside lower center", ncols=len(seen), frameon=False)
    return figure


def _mark(
    axes: Axes, at: float, report: Report, name: str, cell: tuple[int, int, int], figure: Figure
) -> Line2D | None:
    found = over(report, name, cell, figure)
    if found is None:
        return None
    colour, marker = LOOK.get(name, (BLACK, "*"))
    axes.plot([found.least, found.most], [at, at], color=colour, linewidth=2, alpha=0.5)
    return axes.plot([found.mean], [at], color=colour, marker=marker, linestyle="none")[0]
