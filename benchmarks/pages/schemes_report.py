"""Tables and plots of docs/analysis.md from the files that ``benchmarks.pages.schemes measure`` wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.support.documents import ROOT, replaced
from coatcheck.bench.engine.result import Quantiles, Report, Run
from coatcheck.bench.support.cells import number, spread
from coatcheck.bench.support.files import read_json
from coatcheck.bench.support.plots import BLUE, ORANGE, SKY, VERMILLION, styled, svg

DOCUMENT = ROOT / "docs/analysis.md"
PLOTS = ROOT / "docs/analysis"
BASE = "object-inline"  # what the others are compared with
LINES = {  # by strategy: colour, marker, line
    "object-inline": (VERMILLION, "o", "-"),
    "object-background": (ORANGE, "s", "--"),
    "dict-inline": (BLUE, "^", "-"),
    "dict-background": (SKY, "D", "--"),
}


def write(directory: Path) -> None:
    """Replaces the tables between the markers in docs/analysis.md, and draws both plots."""
    reports = read(directory)
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), reports))
    PLOTS.mkdir(exist_ok=True)
    grid = {name: report for name, report in reports.items() if re.fullmatch(r"\d+mb-tp\d-c\d+", name)}
    for name, figure in (("stall", stall(grid)), ("throughput", throughput(grid))):
        (PLOTS / f"{name}.svg").write_text(svg(figure, name) + "\n")


def read(directory: Path) -> dict[str, Report]:
    """Reports by case."""
    return {path.name.removesuffix(".json.gz"): read_json(path, Report) for path in sorted(directory.glob("*.json.gz"))}


def with_tables(text: str, reports: dict[str, Report]) -> str:
    """The document with its tables made anew."""
    for name, made in tables(reports).items():
        text = replaced(text, name, made, "pages.schemes")
    return text


def tables(reports: dict[str, Report]) -> dict[str, str]:
    """Markdown by name."""

    def of(figure: Callable[[Run, Run], str]) -> str:
        ordered = sorted(reports.items(), key=lambda item: _order(item[1]))
        columns = [run.strategy for run in ordered[0][1].runs]
        lines = [["payload", "ranks", "at once", "", *columns], ["---:"] * 3 + ["---"] + ["---:"] * len(columns)]
        for _, report in ordered:
            base = next(run for run in report.runs if run.strategy == BASE)
            lines.append([*case(base), *(figure(run, base) for run in report.runs)])
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    return {
        "throughput": of(lambda run, base: f"{spread(run.qps, run.qps_interval)} ({run.qps / base.qps:.2f} x)"),
        "stall": of(stalls),
        "latency": of(lambda run, _: _ends(run.latency_ms)),
        "tokens": of(lambda run, _: _ends(run.itl_ms)),
        "work": of(_work),
    }


def _order(report: Report) -> tuple[object, ...]:
    run = report.runs[0]
    return run.input == "http", run.step_ms, run.payload_bytes, run.tp, run.concurrency


def case(run: Run) -> list[str]:
    """Payload, ranks, concurrency and what else tells a case from others, as cells."""
    more = [f"{run.images_per_request} images"] if run.images_per_request > 1 else []
    more += ["video"] if run.video else []
    more += [f"step {run.step_ms:g} ms"] if run.step_ms else []
    more += ["HTTP, real model"] if run.input == "http" else []
    payload = f"{run.payload_bytes / 1e6:.1f} MB" if run.payload_bytes else "text"
    return [payload, str(run.tp), str(run.concurrency), ", ".join(more)]


def _ends(of: Quantiles | None) -> str:
    return _pair((of.p50, of.p99)) if of else "failed"


def _pair(values: tuple[float, float]) -> str:
    return f"{number(values[0])} / {number(values[1])}"


def stalls(run: Run, _: Run) -> str:
    """Stall of entry and follower, medians in ms, and in brackets their CPU time."""
    entry, follower = run.stall_ms.entry, run.stall_ms.follower
    if entry is None or follower is None:
        return "failed"
    return f"{_pair((entry.p50, follower.p50))} ({_pair((entry.cpu_p50, follower.cpu_p50))})"


def _work(run: Run, _: Run) -> str:
    broadcast = run.broadcast_ms.get("0")
    made = [number(of.p50) for of in run.materialize_ms.values()]
    return f"{number(broadcast.p50) if broadcast else '–'}; {', '.join(made)}; {run.cpu_percent:.0f} %"


@styled
def stall(reports: dict[str, Report]) -> Figure:
    """Entry rank's stall by payload, a panel per number of ranks, at the smaller concurrency."""
    few = min(report.runs[0].concurrency for report in reports.values())
    chosen = [report for report in reports.values() if report.runs[0].concurrency == few]
    panels = sorted({report.runs[0].tp for report in chosen})
    figure = Figure(figsize=(9, 3.9))
    figure.suptitle("No scheme takes the stall away: it grows with the payload", x=0.01, ha="left")
    for axes, tp in zip(_axes(figure, len(panels)), panels, strict=True):
        of = [report for report in chosen if report.runs[0].tp == tp]
        _lines(axes, of, lambda run, _: run.stall_ms.entry.p50 if run.stall_ms.entry else None)
        axes.set_title(f"{tp} ranks, {few} requests at once")
        axes.set_yscale("log")
        plain(axes.yaxis)
    figure.axes[0].set_ylabel("stall of the entry rank's\nscheduler per request, ms, median")
    _legend(figure)
    return figure


@styled
def throughput(reports: dict[str, Report]) -> Figure:
    """Requests per second relative to the regression, a panel per ranks and concurrency."""
    panels = sorted({(report.runs[0].tp, report.runs[0].concurrency) for report in reports.values()})
    figure = Figure(figsize=(9, 3.4))
    figure.suptitle("Throughput against the regression (object-inline = 1)", x=0.01, ha="left")
    for axes, (tp, concurrency) in zip(_axes(figure, len(panels)), panels, strict=True):
        of = [r for r in reports.values() if (r.runs[0].tp, r.runs[0].concurrency) == (tp, concurrency)]
        _lines(axes, of, lambda run, base: run.qps / base.qps if base.qps else None)
        axes.axhline(1, color="#999999", linewidth=1, zorder=0)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{tp} ranks, {concurrency} at once")
    figure.axes[0].set_ylabel("requests/s, relative")
    _legend(figure)
    return figure


def _axes(figure: Figure, count: int) -> Sequence[Axes]:
    made: Sequence[Axes] = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    return made


def _lines(axes: Axes, reports: Sequence[Report], figure: Callable[[Run, Run], float | None]) -> None:
    for name, (colour, marker, line) in LINES.items():
        points = []
        for report in reports:
            base = next(run for run in report.runs if run.strategy == BASE)
            for run in report.runs:
                value = figure(run, base) if run.strategy == name else None
                if value is not None:
                    points.append((run.payload_bytes / 1e6, value))
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, color=colour, marker=marker, linestyle=line, label=name, markersize=5)
    axes.set_xscale("log")
    plain(axes.xaxis)
    axes.set_xlabel("payload, MB")
    axes.grid(True)


def plain(axis: matplotlib.axis.Axis) -> None:
    """A logarithmic axis with numbers as people write them."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 3)))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def _legend(figure: Figure) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
