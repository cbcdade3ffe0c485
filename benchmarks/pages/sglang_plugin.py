"""The table of docs/sglang.md from a run of the benchmark: ``python -m benchmarks.pages.sglang_plugin write``.

The run::

    python -m benchmarks.handoff --rounds 5 --json docs/benchmarks/sglang/plugin.json.gz --contenders \
        sglang-coatcheck,sglang-text,sglang-precomputed-hash,sglang-default,sglang-broadcast-flag
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks.handoff.contenders import PLUGIN
from benchmarks.handoff.result import HandoffReport
from benchmarks.handoff.table import shown
from benchmarks.pages.handoff import (
    Figure,
    blocked,
    entry_cpu,
    find,
    follower_cpu,
    idle_entry_cpu,
    idle_follower_cpu,
    ready,
)
from benchmarks.support.documents import ROOT, replaced
from coatcheck.bench.support.files import read_json

DOCUMENT = ROOT / "docs/sglang.md"
DATA = ROOT / "docs/benchmarks/sglang/plugin.json.gz"
OURS, TEXT = PLUGIN
CONTENDERS = {
    OURS: "plugin",
    "sglang-precomputed-hash": "`SGLANG_MM_PRECOMPUTE_HASH=1`",
    "sglang-default": "as installed",
    "sglang-broadcast-flag": "broadcast flag",
}
GOAL_MS, LOOP_GOAL_MS = 0.3, 2.0  # CPU more than a text of as many tokens; event loop blocked


def beyond_text(report: HandoffReport, contender: str, ranks: int, megabytes: float, figure: Figure) -> float:
    """Median CPU ms of a scheduler's thread, less what a text request of as many tokens takes."""
    own, text = (find(report, name, ranks, megabytes) for name in (contender, TEXT))
    assert own is not None, contender
    assert text is not None
    return figure(own) - figure(text)


def tables(report: HandoffReport) -> str:
    """Stalls on the entry rank and on a follower, then the tokenizer's event loop; where ours misses its goal, bold."""
    queued = _table(report, lambda name, ranks, size: _both(report, name, ranks, size, entry_cpu, follower_cpu))
    alone = _table(
        report, lambda name, ranks, size: _both(report, name, ranks, size, idle_entry_cpu, idle_follower_cpu)
    )
    others = _table(report, lambda name, ranks, size: _other(report, name, ranks, size))
    return (
        "CPU time of a scheduler's thread beyond that of the text, ms, entry rank / follower, while requests wait:\n\n"
        f"{queued}\nThe same with one request at a time, on ranks that sleep in between:\n\n"
        f"{alone}\nEvent loop blocked / features on all ranks after, ms:\n\n{others}"
    )


def _both(report: HandoffReport, contender: str, ranks: int, size: float, entry: Figure, follower: Figure) -> str:
    both = (beyond_text(report, contender, ranks, size, figure) for figure in (entry, follower))
    return " / ".join(_cell(value, GOAL_MS, contender) for value in both)


def _other(report: HandoffReport, contender: str, ranks: int, size: float) -> str:
    run = find(report, contender, ranks, size)
    assert run is not None, contender
    return f"{_cell(blocked(run), LOOP_GOAL_MS, contender)} / {shown(ready(run))}"


def _cell(value: float, goal: float, contender: str) -> str:
    return f"**{shown(value)}**" if contender == OURS and value > goal else shown(value)


def _table(report: HandoffReport, cell: Callable[[str, int, float], str]) -> str:
    heads = ["ranks", "MB", *CONTENDERS.values()]
    lines = [heads, ["---:"] * len(heads)]
    for ranks, size in dict.fromkeys((run.ranks, round(run.payload_bytes / 1e6, 1)) for run in report.runs):
        lines.append([str(ranks), f"{size:g}", *(cell(name, ranks, size) for name in CONTENDERS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_tables(text: str, report: HandoffReport) -> str:
    """The document with its tables made anew."""
    return replaced(text, "costs", tables(report), "pages.sglang_plugin")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("write",))
    parser.parse_args()
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), read_json(DATA, HandoffReport)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
