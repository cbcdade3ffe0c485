"""The figures side by side, a column per strategy: for the terminal, and as Markdown for documents."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from coatcheck.bench.engine.result import Report
from coatcheck.bench.engine.rows import failed_wholly, failures, labels, rows, workload


def table(report: Report) -> Table:
    """For a terminal of 120 columns or more with seven strategies; why requests failed stands under it."""
    made = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        title=Text(workload(report)),
        caption=Text("\n".join(failures(report)), style="red"),
        title_justify="left",
        caption_justify="left",
    )
    made.add_column(Text("median of rounds\n[smallest–largest round]", style="dim"), no_wrap=True)
    for label, run in zip(labels(report), report.runs, strict=True):
        head = Text(label.replace("-", "-\n").replace(", ", "\n"), style="red" if failed_wholly(run) else "bold")
        made.add_column(head, justify="right", vertical="top", overflow="fold")
    for name, cells in rows(report):
        made.add_row(name, *map(_cell, cells))
    return made


def _cell(value: str) -> Text:
    """The interval recedes."""
    cell = Text(value)
    cell.highlight_regex(r" \[.*", "dim")
    return cell


def markdown(report: Report) -> str:
    """The same rows; why requests failed is a list under them."""
    lines = [["", *labels(report)], ["---", *["---:"] * len(report.runs)]]
    lines += [[name, *cells] for name, cells in rows(report)]
    made = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    reasons = [line.replace("`", "'") for line in failures(report)]
    return "\n".join([made, *(f"- `{reason}`\n" for reason in reasons)])
