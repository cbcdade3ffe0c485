"""The figures: a table for each number of ranks and each size, a line per contender, for terminals and documents."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from benchmarks.handoff.result import HandoffReport, HandoffRun, Quantiles, Stall

IN_TERMINAL = ("writer", "ready", "agreed", "stall, entry (CPU)", "stall, follower (CPU)", "loop blocked")
NONE = "–"
TAILS = "p50 / p99"
HEADS = (
    "writer",
    "ready",
    "agreed",
    "stall, entry (CPU)",
    "stall, follower (CPU)",
    "idle: entry (CPU)",
    "idle: follower (CPU)",
    "lane (CPU)",
    "hash",
    "loop blocked",
    "read once",
)


def titled(report: HandoffReport) -> Iterator[tuple[str, list[HandoffRun]]]:
    """A title and the lines of each table."""
    for ranks in dict.fromkeys(run.ranks for run in report.runs):
        for size in dict.fromkeys(run.payload_bytes for run in report.runs):
            runs = [run for run in report.runs if (run.ranks, run.payload_bytes) == (ranks, size)]
            yield f"{size / 1e6:.1f} MB to {ranks} ranks; ms, ", runs


def cells(run: HandoffRun, tails: bool = True) -> list[str]:
    """In order of HEADS, with 99th percentiles or medians alone; of a contender that failed, why."""
    if run.failed:
        return [f"failed: {run.failed}".replace("|", "/"), *[""] * (len(HEADS) - 1)]
    stalls = (run.stall_ms.entry, run.stall_ms.follower, run.idle_stall_ms.entry, run.idle_stall_ms.follower)
    return [
        _time(run.writer_ms, tails),
        _time(run.ready_ms, tails),
        _time(run.agreed_ms, tails),
        *(NONE if stall is None else f"{_time(stall, tails)} ({shown(stall.cpu_p50)})" for stall in stalls),
        _time(run.lane_cpu_ms, tails),
        _time(run.hash_ms, tails),
        _time(run.loop_block_ms, tails),
        _time(run.read_ms, tails),
    ]


def tables(report: HandoffReport) -> Iterator[Table]:
    """For a terminal of 120 columns: medians."""
    for title, runs in titled(report):
        made = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title=Text(f"{title}median"), title_justify="left")
        made.add_column("", no_wrap=True)
        for head in IN_TERMINAL:
            made.add_column(Text(head), justify="right")
        for run in runs:
            found = dict(zip(HEADS, cells(run, tails=False), strict=True))
            made.add_row(run.contender, *(["failed"] if run.failed else [found[head] for head in IN_TERMINAL]))
        yield made


def markdown(report: HandoffReport) -> str:
    """The same with 99th percentiles, for a document."""
    parts = []
    for title, runs in titled(report):
        lines = [["", *HEADS], ["---", *["---:"] * len(HEADS)], *([run.contender, *cells(run)] for run in runs)]
        parts.append(f"{title}{TAILS}:\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


def shown(value: float) -> str:
    """Three figures."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _time(found: Quantiles | Stall | None, tails: bool) -> str:
    if found is None:
        return NONE
    return f"{shown(found.p50)} / {shown(found.p99)}" if tails else shown(found.p50)
