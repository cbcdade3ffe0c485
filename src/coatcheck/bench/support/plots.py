"""What plots of measurements have in common. Needs matplotlib; nothing of its global state is kept changed.

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

ORANGE, SKY, BLUE, VERMILLION, GREEN, PURPLE, BLACK, GREY = (
    *("#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#999999"),
)
WIDTH_IN = 9.0
LEAST_MS = 0.001  # where a logarithmic axis draws what is below it
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
