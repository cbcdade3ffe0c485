"""The report as one HTML file that loads nothing: figures, plots, and how to read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from coatcheck.bench import plots
from coatcheck.bench.result import Report
from coatcheck.bench.rows import NONE, failed_wholly, failures, labels, rows, workload

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


def templates() -> jinja2.Environment:
    """The benchmark's own."""
    loader = jinja2.PackageLoader("coatcheck", "bench")
    return jinja2.Environment(
        autoescape=True, loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def html(report: Report) -> str:
    """The whole page."""
    rounds = min((run.rounds for run in report.runs if not failed_wholly(run)), default=0)
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            workload=workload(report),
            strategies=[(label, failed_wholly(run)) for label, run in zip(labels(report), report.runs, strict=True)],
            rows=[(name, [cell.partition(" [") for cell in cells]) for name, cells in rows(report)],
            failures=failures(report),
            plots=[(name, Markup(plots.svg(draw(report), name)), caption) for name, draw, caption in _PLOTS],
            rounds=rounds,
            confidence=f"{100 * (1 - 2 / 2**rounds):.0f} %" if rounds > 1 else "",
            facts=[
                (title, [(name.replace("_", " "), shown(value)) for name, value in facts.items()])
                for title, facts in (("Options", report.options), ("Environment", report.environment))
            ],
        )
    )


def shown(value: Any) -> str:
    """An option or a fact for people to read."""
    match value:
        case None | "":
            return NONE
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case dict():
            return ", ".join(f"{name} {shown(of)}" for name, of in value.items()) or NONE
        case list() | tuple():
            return ", ".join(map(shown, value)) or NONE
        case _:
            return str(value)
