"""docs/sglang.md says what was measured."""

from __future__ import annotations

import pytest

from benchmarks.handoff.result import HandoffReport, HandoffRun, Quantiles, Stall, StallByRole
from benchmarks.pages.sglang_plugin import CONTENDERS, DATA, DOCUMENT, OURS, TEXT, beyond_text, tables, with_tables
from coatcheck.bench.support.files import read_json


def test_the_tables_are_those_of_the_data() -> None:
    text = DOCUMENT.read_text()
    assert with_tables(text, read_json(DATA, HandoffReport)) == text


def run(contender: str, cpu_ms: float) -> HandoffRun:
    stall = Stall(9.0, 9.0, cpu_ms, cpu_ms)
    size, both, stalls = 25_000_000, Quantiles(3.0, 3.0), StallByRole(stall, stall)
    return HandoffRun(contender, 2, size, size, both, both, both, stalls, stalls, None, None, both, None, "", [], [])


@pytest.mark.parametrize(("ms", "shown"), [(1.2, "0.2 / 0.2"), (1.5, "**0.5** / **0.5**")])
def test_a_stall_is_what_exceeds_the_text_s_and_a_miss_of_ours_is_bold(ms: float, shown: str) -> None:
    report = HandoffReport(1, {}, {}, [], [run(TEXT, 1.0), *[run(name, ms) for name in CONTENDERS]])
    assert beyond_text(report, OURS, 2, 25, lambda of: of.stall_ms.entry.cpu_p50 if of.stall_ms.entry else 0) == ms - 1
    row = next(line for line in tables(report).splitlines() if line.startswith("| 2 |"))
    assert row.split(" | ")[2] == shown
    assert "**" not in row.split(" | ")[3]
