"""Tables and plot of docs/handles.md from the files that ``benchmarks.pages.handles measure`` wrote."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import msgspec
from matplotlib.figure import Figure

from benchmarks.pages.schemes_report import BASE, case, plain, read, stalls
from benchmarks.support.documents import ROOT, replaced
from coatcheck.bench.engine.result import Report, Run, StallQuantiles
from coatcheck.bench.support.cells import number, spread
from coatcheck.bench.support.plots import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, styled, svg
from coatcheck.engine.strategies.table import NAMES

DOCUMENT = ROOT / "docs/handles.md"
PLOT = ROOT / "docs/analysis/handles.svg"
COLOURS = {
    "object-inline": VERMILLION,
    "object-background": ORANGE,
    "dict-inline": BLUE,
    "dict-background": SKY,
    "handle-inline": GREEN,
    "handle-background": GREY,
    "auto": BLACK,
}
WORKLOADS = {
    "small": "224x224, 1.2 MB",
    "smalls": "4 of 224x224, 4.8 MB",
    "image": "1024x1024, 25.8 MB",
    "images": "4 of 1024x1024, 103 MB",
}


def write(directory: Path) -> None:
    """Replaces the tables between the markers in docs/handles.md, and draws the plot."""
    reports = read(directory)
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), reports))
    PLOT.write_text(svg(stall(all_strategies(reports)), "handles") + "\n")


def with_tables(text: str, reports: dict[str, Report]) -> str:
    """The document with its tables made anew."""
    whole = list(all_strategies(reports).values())
    made = {
        "equal": _equal(reports),
        "throughput": _compared(whole, lambda run, base: f"{spread(run.qps, run.qps_interval)} ({_times(run, base)})"),
        "stall": _compared(whole, stalls),
        "size": _by_size(reports),
        "steps": _steps(reports),
    }
    for name, table in made.items():
        text = replaced(text, name, table, "pages.handles")
    return text


def all_strategies(reports: dict[str, Report]) -> dict[str, Report]:
    """The cases in which all strategies are compared, small ones first; one that was run in parts is one again."""
    named = {name: report for name, report in reports.items() if re.fullmatch(r"\w+-tp\d-c\d+(-\d+cores)?", name)}
    parts = defaultdict[str, list[Report]](list)
    for name, report in reports.items():
        if found := re.fullmatch(r"(\w+-tp\d-c\d+)-(?:object|dict)-\w+(-\d+cores)?", name):
            parts["".join(part or "" for part in found.groups())].append(report)
    named |= {name: joined(of) for name, of in parts.items()}
    return dict(sorted(named.items(), key=lambda pair: _order(pair[1])))


def joined(parts: Sequence[Report]) -> Report:
    """Of parts with different strategies. One that is in several has the median throughput, and their range."""
    runs = []
    for strategy in NAMES:
        own = sorted((run for part in parts for run in part.runs if run.strategy == strategy), key=lambda run: run.qps)
        if len(own) == 1:
            runs += own
        elif own:
            middle = own[(len(own) - 1) // 2]
            qps = median(run.qps for run in own)
            runs.append(msgspec.structs.replace(middle, qps=qps, qps_interval=(own[0].qps, own[-1].qps)))
    return msgspec.structs.replace(parts[0], runs=runs)


def _order(report: Report) -> tuple[float, ...]:
    run = report.runs[0]
    return report.environment["cores"], run.payload_bytes, run.tp, run.concurrency


def _times(run: Run, base: Run) -> str:
    return f"{run.qps / base.qps:.2f} x"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---:"] * len(lines[0]), *map(list, rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _compared(reports: list[Report], figure: Callable[[Run, Run], str]) -> str:
    rows = []
    for report in reports:
        base = next(run for run in report.runs if run.strategy == BASE)
        rows.append([str(report.environment["cores"]), *case(base), *(figure(run, base) for run in report.runs)])
    columns = [run.strategy for run in reports[0].runs] if reports else []
    return _table(["cores", "payload", "ranks", "at once", "", *columns], rows)


def _equal(reports: dict[str, Report]) -> str:
    """Requests/s with the same float32 bytes under every strategy; times dict-inline, times object-inline."""
    rows = []
    for name, tp in product(("image", "images"), (2, 4)):
        whole, wide = reports[f"{name}-tp{tp}-c16"], reports[f"{name}-wide-tp{tp}"]
        assert {run.concurrency for run in (*whole.runs, *wide.runs)} == {16}
        strategies = {run.strategy: run for run in whole.runs}
        bases = [strategies["dict-inline"], strategies[BASE]]
        cells = [
            f"{spread(run.qps, run.qps_interval)} ({' / '.join(_times(run, base) for base in bases)})"
            for run in wide.runs
        ]
        given = (spread(base.qps, base.qps_interval) for base in reversed(bases))
        rows.append([WORKLOADS[name], str(tp), *given, *cells])
    return _table(["payload", "ranks", BASE, "dict-inline", *(run.strategy for run in wide.runs)], rows)


def _cpu(of: StallQuantiles | None) -> float:
    return of.cpu_p50 if of is not None else float("nan")


def _by_size(reports: dict[str, Report]) -> str:
    """CPU time of the scheduler's thread, entry / follower, wide payloads by handle, and text as long if measured."""
    rows = []
    for machine, tp, name in product(("", "-16cores"), (2, 4), WORKLOADS):
        text, wide = (reports.get(f"{name}-{kind}-tp{tp}{machine}") for kind in ("text", "wide"))
        if wide is None:
            continue
        figures = [
            f"{number(_cpu(run.stall_ms.entry))} / {number(_cpu(run.stall_ms.follower))}"
            for run in (*(text.runs if text is not None else ()), *wide.runs)
        ]
        missing = [] if text is not None else ["–"]
        where = [str(wide.environment["cores"]), WORKLOADS[name], str(tp), str(wide.runs[-1].prompt_tokens)]
        rows.append([*where, *missing, *figures])
    head = ["cores", "payload", "ranks", "tokens", "text as long"]
    return _table([*head, "handle-inline", "handle-background", "auto"], rows)


def _steps(reports: dict[str, Report]) -> str:
    """Between tokens, p50 / p99 in ms, under steps of 20 ms."""
    image, text = reports["image-step20"].runs, reports["image-text-step20"].runs
    rows = []
    for with_images, without in zip(image, text, strict=True):
        assert with_images.itl_ms is not None
        assert without.itl_ms is not None
        pairs = [f"{number(run.p50)} / {number(run.p99)}" for run in (with_images.itl_ms, without.itl_ms)]
        rows.append([with_images.strategy, *pairs, f"{with_images.itl_ms.p99 / without.itl_ms.p99:.2f}"])
    return _table(["strategy", "images of 25.8 MB arrive", "text as long arrives", "ratio of the p99"], rows)


@styled
def stall(reports: dict[str, Report]) -> Figure:
    """Median stall of the entry rank by strategy, a panel for each workload at 16 at once."""
    few = [report for report in reports.values() if report.runs[0].concurrency == 16]
    columns = 3
    figure = Figure(figsize=(9, 2 + 2 * -(-len(few) // columns)))
    figure.suptitle("By handle a stall is less than a hundredth of the regression's", x=0.01, ha="left")
    panels = figure.subplots(-(-len(few) // columns), columns, sharex=True, sharey=True, squeeze=False).T.flatten()
    for axes, report in zip(panels, few, strict=True):
        names = [run.strategy for run in report.runs]
        values = [run.stall_ms.entry.p50 if run.stall_ms.entry else 0.0 for run in report.runs]
        for name, value in zip(names, values, strict=True):
            axes.plot([value], [name], "o", color=COLOURS[name], markersize=8)
            axes.annotate(number(value), (value, name), (8, -3), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(0.02, 3000)
        plain(axes.xaxis)
        axes.set_xticks([0.1, 1, 10, 100, 1000])
        axes.grid(True)
        run = report.runs[0]
        axes.set_title(f"{run.payload_bytes / 1e6:.0f} MB, {run.tp} ranks", fontsize=9)
    panels[0].invert_yaxis()
    figure.supxlabel("stall of the entry rank's scheduler per request, ms, median, 16 requests at once", fontsize=9)
    return figure
