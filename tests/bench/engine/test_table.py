"""The figures in a terminal and in a document."""

from __future__ import annotations

import io
import subprocess
import sys

from rich.console import Console

from coatcheck.bench.engine.result import Report
from coatcheck.bench.engine.rows import rows
from coatcheck.bench.engine.table import markdown, table
from coatcheck.bench.support.cells import NONE
from tests.bench.conftest import COSTS, failed_run, make_report, make_run

REASON = "no room in the arena: asked for 24.1 MB [16.0 MB are there]"


def printed(report: Report, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table(report))
    return out.getvalue()


def test_seven_strategies_fit_120_columns_without_loss() -> None:
    runs = [make_run(strategy) for strategy in COSTS]
    report = make_report([*runs[:-1], failed_run("handle-packed", REASON)])
    text = printed(report, 120)
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    words = set(text.split())
    assert {"object-", "handle-", "inline", "background", "packed"} <= words
    for name, cells in rows(report):
        assert name in text
        for cell in cells:
            assert set(cell.split()) <= words, f"{name}: {cell}"


def test_at_160_columns_an_interval_stands_beside_its_median() -> None:
    report = make_report([make_run(strategy) for strategy in list(COSTS)[:6]])
    lines = printed(report, 160).splitlines()
    for name, cells in rows(report):
        (line,) = [line for line in lines if name in line]
        assert all(cell in line for cell in cells)


def test_a_strategy_that_failed_is_shown_with_its_reason() -> None:
    report = make_report([make_run("object-inline"), failed_run("dict-inline", REASON)])
    lines = printed(report, 160).splitlines()
    assert next(line for line in lines if "requests/s" in line).endswith(" failed ")
    assert next(line for line in lines if "latency p50" in line).rstrip().endswith(NONE)
    assert next(line for line in lines if "failed requests" in line).split()[-2:] == ["0", "36"]
    assert " ".join(" ".join(lines).split()).endswith(f"dict-inline: 36 requests failed: {REASON}")


def test_markdown_has_the_same_cells(report: Report) -> None:
    head, rule, *body = markdown(report).split("\n\n")[0].splitlines()
    assert (
        head == "|  | object-inline, 2 ranks | dict-inline, 2 ranks | dict-inline, 4 ranks | handle-inline, 2 ranks |"
    )
    assert rule.count("---:") == 4
    assert body == [f"| {' | '.join([name, *cells])} |" for name, cells in rows(report)]


def test_markdown_shows_a_reason_as_code_on_one_line(report: Report) -> None:
    assert markdown(report).splitlines()[-2:] == [
        "",
        "- `handle-inline, 2 ranks: 36 requests failed: "
        "rank 1: <script>alert('pixels')</script> | 'rm' [red] and & more`",
    ]
    assert markdown(make_report([make_run("dict-inline")])).endswith(" |\n")


def test_the_table_does_without_matplotlib() -> None:
    code = (
        "import sys, coatcheck.bench.engine.table, coatcheck.bench.support.files; sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=15, check=False).returncode == 0
