"""The report as one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from coatcheck.bench.handoff import plots
from coatcheck.bench.handoff.result import HandoffReport
from coatcheck.bench.handoff.table import HEADS, TAILS, cells, titled
from coatcheck.bench.page import shown, templates
from coatcheck.bench.plots import svg

MEANINGS = [
    ("writer", "what the front end does until it has nothing more to do for the request; its hash is apart"),
    ("ready", "from the tensor in the front end until it is usable on the last rank"),
    ("agreed", "until all ranks know it of each other, where a contender lets them know; else the same"),
    (
        "stall",
        "wall time of a scheduler's thread for a request that waited for it behind others, a follower's from the "
        "moment in which the entry rank turns to the request, letting go of the tensor afterwards included; in "
        "brackets the CPU time of that thread",
    ),
    ("idle", "the same for a request that came alone, to ranks that slept: slower, since nothing is in the caches"),
    ("lane", "CPU time of the rank's other thread, which holds up no scheduler, where there is one"),
    ("hash", "identity of the content, where the front end computes it; where ranks do, it is in their stall"),
    ("loop blocked", "longest time in which the front end's event loop had no turn; measured in other hand-offs"),
    ("read once", "a rank reads every byte afterwards, which also faults in what was only mapped"),
]


def write_html(report: HandoffReport, path: Path) -> None:
    """The same report gives the same bytes."""
    path.write_text(html(report), encoding="utf-8")


def html(report: HandoffReport) -> str:
    """The whole page."""
    return (
        templates()
        .get_template("handoff.html.j2")
        .render(
            rounds=report.options["rounds"],
            heads=HEADS,
            tables=[
                (title + TAILS, [(run.contender, run.failed, [] if run.failed else cells(run)) for run in runs])
                for title, runs in titled(report)
            ],
            plots=[
                Markup(svg(plots.by_size(report, ranks), f"ranks{ranks}"))
                for ranks in dict.fromkeys(run.ranks for run in report.runs)
            ],
            meanings=MEANINGS,
            facts=[
                (title, [(name.replace("_", " "), shown(value)) for name, value in facts.items()])
                for title, facts in (("Options", report.options), ("Environment", report.environment))
            ],
        )
    )
