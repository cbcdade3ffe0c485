"""The figures: a table for each number of ranks and each size, a line per contender, for terminals and documents."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from coatcheck.bench.handoff.result import HandoffReport, HandoffRun, Quantiles, Stall

NONE = "–"
HEADS = (
    "writer",
    "ready",
    "stall, entry (CPU)",
    "stall, follower (CPU)",
    "idle: entry (CPU)",
    "idle: follower (CPU)",
    "hash",
    "loop blocked",
    "read once",
)


def titled(report: HandoffReport) -> Iterator[tuple[str, list[HandoffRun]]]:
    """A title and the lines of each table."""
    for ranks in dict.fromkeys(run.ranks for run in report.runs):
        for size in dict.fromkeys(run.payload_bytes for run in report.runs):
            runs = [run for run in report.runs if (run.ranks, run.payload_bytes) == (ranks, size)]
            yield f"{size / 1e6:.1f} MB to {ranks} ranks; ms, p50 / p99", runs


def cells(run: HandoffRun) -> list[str]:
    """In order of HEADS; of a contender that failed, why."""
    if run.failed:
        return [f"failed: {run.failed}", *[""] * (len(HEADS) - 1)]
    return [
        _both(run.writer_ms),
        _both(run.ready_ms),
        _stall(run.stall_ms.entry),
        _stall(run.stall_ms.follower),
        _stall(run.idle_stall_ms.entry),
        _stall(run.idle_stall_ms.follower),
        _both(run.hash_ms),
        _both(run.loop_block_ms),
        _both(run.read_ms),
    ]


def tables(report: HandoffReport) -> Iterator[Table]:
    """For a terminal of 120 columns."""
    for title, runs in titled(report):
        made = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title=Text(title), title_justify="left")
        made.add_column("")
        for head in HEADS:
            made.add_column(Text(head.replace(" (", "\n(")), justify="right", overflow="fold")
        for run in runs:
            if run.failed:
                made.add_row(run.contender, Text("failed", style="red"))
            else:
                made.add_row(run.contender, *cells(run))
        reasons = [f"{run.contender}: {run.failed}" for run in runs if run.failed]
        made.caption = Text("\n".join(reasons), style="red")
        made.caption_justify = "left"
        yield made


def markdown(report: HandoffReport) -> str:
    """The same, for a document."""
    parts = []
    for title, runs in titled(report):
        lines = [["", *HEADS], ["---", *["---:"] * len(HEADS)], *([run.contender, *cells(run)] for run in runs)]
        parts.append(f"{title}:\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


def shown(value: float) -> str:
    """Three figures."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _both(found: Quantiles | None) -> str:
    return NONE if found is None else f"{shown(found.p50)} / {shown(found.p99)}"


def _stall(found: Stall | None) -> str:
    return NONE if found is None else f"{shown(found.p50)} / {shown(found.p99)} ({shown(found.cpu_p50)})"
