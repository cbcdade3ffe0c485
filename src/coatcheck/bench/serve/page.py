"""The report as one HTML file that loads nothing: figures, plots, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from coatcheck.bench.serve import plots
from coatcheck.bench.serve.result import Report, Run
from coatcheck.bench.serve.rows import Server, notes, problems, rows, servers_of
from coatcheck.bench.support.page import shown, templates
from coatcheck.bench.support.plots import svg

_PLOTS: list[tuple[str, Callable[[Sequence[Server]], Figure], str]] = [
    ("throughput", plots.throughput, "Higher is better. Where the spans of two servers overlap, the rounds do not "
     "tell them apart."),
    ("latency", plots.latency, "Lower is better, all rounds together: the box holds the middle half, the thick line is "
     "the median, the whiskers reach from the 1st to the 99th percentile, and dots lie beyond."),
    ("neighbours", plots.neighbours, "Further left is better: how long users of text wait for their next word, for a "
     "short answer, and a load balancer for GET /health, while images are served. Boxes as above, equal distances are "
     "equal factors."),
    ("over-time", plots.over_time, "A dot for each image request where its answer ended. Rows of dots are batches; a "
     "slope says that the ramp was too short."),
]  # fmt: skip

MEANINGS = [
    ("image requests/s", "each request by its share in the window; always so many are under way as there are clients"),
    ("latency", "from the first byte sent to the answer's end"),
    ("first text", "from the first byte sent to the first text of the answer (time to first token)"),
    ("text stream, gap", "between two texts of one long text answer that follow each other; what arrives together is "
     "one, and a gap that is open at the window's end counts if it is the longest"),
    ("text probe", "a text request with an answer of 8 tokens, sent at fixed times whether the last one has ended or "
     "not"),
    ("/health", "GET /health at fixed times"),
    ("× ratio", "to the first column, with the median and the extremes over rounds. In one comparison each ratio is of "
     "two rounds of the same number. Against a saved file each round is taken with each, and nothing tells what else "
     "had changed since"),
    ("tokens received", "of those asked for in image requests; below 100 % a server ended answers early"),
    ("this client late by", "the longest time in which this program's own event loop had no turn: what a time stamp "
     "may be wrong by"),
]  # fmt: skip


def write_html(report: Report, path: Path, saved: Sequence[Run] = ()) -> None:
    """The same report gives the same bytes."""
    path.write_text(html(report, saved), encoding="utf-8")


def html(report: Report, saved: Sequence[Run] = ()) -> str:
    """The whole page; ``saved`` are an earlier report's runs, which this one's are compared with."""
    servers = servers_of(report.runs, saved)
    return (
        templates()
        .get_template("serve/page.html.j2")
        .render(
            servers=[server.name for server in servers],
            rounds=report.options["rounds"],
            load=summary(report),
            rows=[
                (label, [(*cell.value.partition(" [")[::2], cell.ratio) for cell in cells])
                for label, cells in rows(servers)
            ],
            problems=problems(report.runs),
            notes=notes(report.runs),
            plots=[(name, Markup(svg(draw(servers), name)), caption) for name, draw, caption in _PLOTS],
            meanings=MEANINGS,
            facts=[
                (title, [(name.replace("_", " "), shown(value)) for name, value in facts.items()])
                for title, facts in (("Options", report.options), ("Environment", report.environment))
            ],
        )
    )


def summary(report: Report) -> str:
    """The load in one line."""
    of = report.options
    size = f"{of['width'] or of['side']} x {of['height'] or of['side']}"
    if of["video"]:
        asked = f"a video ({of['video']})"
    elif of["directory"]:
        asked = f"{of['images']} of the pictures in {of['directory']}"
    elif of["images"]:
        asked = f"{of['images']} new {of['image_format'].upper()} of {size}"
    else:
        asked = "text alone"
    return (
        f"{of['clients']} requests at once, each with {asked}, answers of {of['output_tokens']} tokens; beside them "
        f"{of['text_streams']} text streams. Windows of {of['window_s']:g} s after ramps of {of['ramp_s']:g} s."
    )
