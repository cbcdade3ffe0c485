"""The report as one HTML file that loads nothing: figures, plots, and how to read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from coatcheck.bench.engine import plots
from coatcheck.bench.engine.result import Report
from coatcheck.bench.engine.rows import failed_wholly, failures, labels, rows, workload
from coatcheck.bench.support.page import shown, templates
from coatcheck.bench.support.plots import svg

_PLOTS: list[tuple[str, Callable[[Report], Figure], str]] = [
    (
        "throughput",
        plots.throughput,
        "Higher is better; where the spans of two strategies overlap, the rounds do not tell them apart.",
    ),
    (
        "latency",
        plots.latency,
        "Lower is better: the box holds the middle half of all rounds' requests, the thick line is their median, "
        "the whiskers reach from the 1st to the 99th percentile, and dots lie beyond.",
    ),
    (
        "stall",
        plots.stall,
        "Further left is better: while a scheduler's thread works on one request's inputs, all running requests wait; "
        "boxes and whiskers as above, equal distances are equal factors.",
    ),
    (
        "timeline",
        plots.timeline,
        "White is time in which the thread was free to run the model, colour is time spent on inputs, by phase "
        "(the shortest are drawn a hairline wide); of the middle round, "
        f"its first {plots.TIMELINE_S:g} seconds at most, grey after its end.",
    ),
]


def write_html(report: Report, path: Path) -> None:
    """The same report gives the same bytes."""
    path.write_text(html(report), encoding="utf-8")


def html(report: Report) -> str:
    """The whole page."""
    rounds = min((run.rounds for run in report.runs if not failed_wholly(run)), default=0)
    return (
        templates()
        .get_template("engine/page.html.j2")
        .render(
            workload=workload(report),
            strategies=[(label, failed_wholly(run)) for label, run in zip(labels(report), report.runs, strict=True)],
            rows=[(name, [cell.partition(" [") for cell in cells]) for name, cells in rows(report)],
            failures=failures(report),
            plots=[(name, Markup(svg(draw(report), name)), caption) for name, draw, caption in _PLOTS],
            rounds=rounds,
            confidence=f"{100 * (1 - 2 / 2**rounds):.0f} %" if rounds > 1 else "",
            facts=[
                (title, [(name.replace("_", " "), shown(value)) for name, value in facts.items()])
                for title, facts in (("Options", report.options), ("Environment", report.environment))
            ],
        )
    )
