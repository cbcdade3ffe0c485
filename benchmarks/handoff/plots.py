"""One figure of a report, for each number of ranks."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.handoff.result import HandoffReport, HandoffRun
from coatcheck.bench.support.plots import BLACK, BLUE, GREEN, GREY, LEAST_MS, VERMILLION, styled

COLOURS = {"coatcheck": VERMILLION, "sglang": BLUE, "vllm": GREEN, "memcpy": BLACK}  # by the first part of the name


def _ready(run: HandoffRun) -> float | None:
    return None if run.ready_ms is None else run.ready_ms.p50


def _stall(run: HandoffRun) -> float | None:
    return None if run.stall_ms.entry is None else run.stall_ms.entry.p50


def _writer(run: HandoffRun) -> float | None:
    return None if run.writer_ms is None else run.writer_ms.p50


PANELS: list[tuple[str, Callable[[HandoffRun], float | None]]] = [
    ("ready on all ranks", _ready),
    ("stall of the entry rank", _stall),
    ("front end's part", _writer),
]


@styled
def by_size(report: HandoffReport, ranks: int) -> Figure:
    """A line per contender, a dot per size; medians."""
    runs = [run for run in report.runs if run.ranks == ranks]
    names = list(dict.fromkeys(run.contender for run in runs))
    figure = Figure(figsize=(9.0, 1.2 + 0.3 * len(names)))
    sizes = ", ".join(f"{size / 1e6:.3g}" for size in dict.fromkeys(run.payload_bytes for run in runs))
    figure.suptitle(f"{ranks} ranks; {sizes} MB", x=0.01, ha="left")
    for at, (axes, (title, figure_of)) in enumerate(
        zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True)
    ):
        axes.set_title(title)
        axes.set_xscale("log")
        axes.grid(axis="both")
        axes.set_xlabel("ms")
        axes.tick_params(axis="y", length=0)
        if at == 0:
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
        for line, name in enumerate(names):
            colour = COLOURS.get(name.split("-")[0], GREY)
            found = [figure_of(run) for run in runs if run.contender == name]
            values = [max(value, LEAST_MS) for value in found if value is not None]
            if values:
                axes.plot(values, [line] * len(values), color=colour, lw=1.5, zorder=2)
                marks = [18.0 * (1 + step) for step in range(len(values))]
                axes.scatter(values, [line] * len(values), s=marks, color=colour, alpha=0.75, lw=0, zorder=3)
            elif any(run.failed for run in runs if run.contender == name) and at == 0:
                axes.text(0.02, line, "failed", transform=axes.get_yaxis_transform(), va="center", color=VERMILLION)
        axes.xaxis.set_major_locator(LogLocator(numticks=10))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    return figure
