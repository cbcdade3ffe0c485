"""Tables and the plot of docs/gpu.md from docs/benchmarks/gpu: ``python -m benchmarks.gpu.report write``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu import bound
from benchmarks.gpu.contenders import CONTENDERS
from benchmarks.gpu.counters import LAG
from benchmarks.gpu.figures import (
    GAP,
    INSTALLED,
    LATENCIES,
    RATE,
    CellKey,
    Figure,
    Spread,
    base,
    best_installed,
    cells,
    contenders,
    gap,
    misses,
    over,
    rate,
    ratio,
    runs,
    spread,
)
from benchmarks.support.documents import ROOT, replaced
from coatcheck.bench.serve.result import Report, Run
from coatcheck.bench.support.cells import NONE, number
from coatcheck.bench.support.files import read_json

DOCUMENT = ROOT / "docs/gpu.md"
DATA = ROOT / "docs/benchmarks/gpu"
PLOT = ROOT / "docs/gpu.svg"
LATE_S = 0.005  # a boundary of the metric's buckets
SAME_TOKENS = 0.01  # an oracle may compute so much less or more than the others


def tables(reports: dict[str, Report]) -> dict[str, str]:
    """Markdown by the name of its place."""
    return {
        "machine": "\n".join(
            [*(machine(name, report) for name, report in reports.items()), _PICTURE if reports else ""]
        ),
        "measured": _sections(reports, measured),
        "ratios": _sections(reports, ratios),
        "bound": _sections({name: one for name, one in reports.items() if "resident" in contenders(one)}, bounds),
        "processes": _sections(reports, processes),
    }


def machine(name: str, report: Report) -> str:
    """One line: what it ran on, and when."""
    found, options = report.environment, report.options
    cards = [f"{card['name']} ({int(card['memory_mib']) / 1024:.0f} GiB)" for card in found.get("gpu", [])]
    drivers = sorted({card["driver"] for card in found.get("gpu", [])})
    commits = sorted({run.extra.get("commit", "") for run in report.runs} - {""}) or [found.get("commit", "")]
    used = sorted({card for run in report.runs for card in run.extra.get("gpu", [])})
    versions = ", ".join(f"{package} {version}" for package, version in found.get("server", {}).items())
    parts = [
        f"{len(cards)} x {cards[0]}, driver {', '.join(drivers)}" if cards else "no GPU",
        f"also measured on {', '.join(used)}" if len(used) > 1 else "",
        f"{found.get('cores')} cores, {found.get('memory_gib')} GiB, /dev/shm {found.get('shm_gib')} GiB",
        versions,
        f"Python {found.get('python')}",
        f"coatcheck at {', '.join(commits)}",
        f"{found.get('date')}",
        f"{options['plan']['output_tokens']} tokens out, {options['plan']['text_streams']} text streams",
    ]
    return f"- `{name}`: {'; '.join(filter(None, parts))}"


def measured(report: Report) -> str:
    """A row for each cell and contender; where the plugin misses a goal, bold."""
    heads = ["cell", "contender", "requests/s", "latency p50 / p99, s", "TTFT p50 / p99, s"]
    heads += ["text gap p50 / p99 / max, ms", "probe p99, ms", "health p99, ms", "errors", "tokens", "uncached tokens"]
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for cell in cells(report):
        missed = misses(report, cell)
        for name in contenders(report):
            if found := runs(report, name, cell):
                lines.append([_cell(cell), name, *_figures(found, missed if name == base(report) else [])])
    return _table(lines)


def _figures(found: list[Run], bold: Sequence[str]) -> list[str]:
    """The cells of one contender's row, over its rounds. ``bold``: names of figures."""

    def shown(name: str, figure: Figure, scale: float = 1.0) -> str:
        return _bold(_mean(spread([figure(run) for run in found]), scale), name in bold)

    seconds = {name: shown(name, figure, 1e-3) for name, figure in LATENCIES.items()}
    worst = [run.text_gap_ms.max for run in found if run.text_gap_ms]
    return [
        _bold(_with_range(spread([rate(run) for run in found])), RATE in bold),
        f"{seconds['latency p50']} / {seconds['latency p99']}",
        f"{seconds['TTFT p50']} / {seconds['TTFT p99']}",
        f"{shown('', _gap_p50)} / {shown(GAP, gap)} / {number(max(worst)) if worst else NONE}",
        *(shown(name, LATENCIES[name]) for name in ("probe p99", "health p99")),
        str(sum(sum(run.errors.values()) for run in found)),
        f"{sum(run.tokens_received for run in found)} / {sum(run.tokens_expected for run in found)}",
        _mean(spread([uncached(run) for run in found])),
    ]


def ratios(report: Report) -> str:
    """The plugin over every other, within the group's rounds."""
    lines = [
        ["cell", f"{base(report)} over", "requests/s", "latency p50", "text gap p99", "goals missed"],
        ["---"] * 2 + ["---:"] * 4,
    ]
    for cell in cells(report):
        best, missed = best_installed(report, cell), ", ".join(misses(report, cell)) or "none"
        for name in contenders(report):
            if name == base(report) or not runs(report, name, cell):
                continue
            label = f"{name}, the best installed" if name == best else name
            figures = (rate, LATENCIES["latency p50"], gap)
            row = [_with_range(ratio(report, name, cell, figure)) for figure in figures]
            goals = missed if name == best or best is None else ""
            lines.append([_cell(cell), label, *row, f"**{goals}**" if goals not in ("", "none") else goals])
    return _table(lines)


def bounds(report: Report) -> str:
    """The oracle beside what the arithmetic allows, and whether it computed what the others do."""
    heads = ["cell", "TFLOP a request, language + vision", "bound, requests/s", "resident", "share of the bound"]
    lines = [[*heads, f"uncached tokens, resident / {base(report)}", "the same work"], ["---"] + ["---:"] * 6]
    config = json.loads(report.options["model"])
    for cell in cells(report):
        found, oracle = over(report, "resident", cell, rate), over(report, "resident", cell, uncached)
        if found is None or oracle is None:
            continue
        _, images, side = cell
        run = runs(report, "resident", cell)[0]
        one = bound.work(config, oracle.mean, images, side, run.output_tokens)
        peaks = [peak for card in run.extra.get("gpu", []) if (peak := bound.peak(card))][: run.tp]
        limit = sum(peaks) / one.total if peaks else None
        other = over(report, base(report), cell, uncached)
        same = other is not None and abs(oracle.mean / other.mean - 1) <= SAME_TOKENS and _encoded(report, cell)
        lines.append(
            [
                _cell(cell),
                f"{number(one.language / 1e12)} + {number(one.vision / 1e12)}",
                number(limit) if limit else NONE,
                _with_range(found),
                f"{found.mean / limit:.0%}" if limit else NONE,
                f"{_mean(oracle)} / {_mean(other)}",
                "yes" if same else "**no**",
            ]
        )
    return _table(lines)


def processes(report: Report) -> str:
    """CPU time by process of the server measured, and by picture; of the load's own, of the servers that wait; memory.

    And how often the event loop was late, where the plugin's metric says so.
    """
    heads = [
        "cell",
        "contender",
        "tokenizer",
        "entry rank",
        "detokenizer",
        "workers, others",
        "load",
        "observers",
        "waiting servers",
        "PSS, GiB",
        "CPU, s a picture",
        f"event loop late by {LATE_S * 1e3:g} ms and more",
    ]
    lines = [heads, ["---", "---", *["---:"] * 10]]
    for cell in cells(report):
        for name in contenders(report):
            if not (found := runs(report, name, cell)):
                continue
            waiting = [sum(run.extra.get("idle_cpu_percent", {}).values()) for run in found]
            lines.append(
                [
                    *(_cell(cell), name),
                    *(_cpu(found, *titles) for titles in _TITLES),
                    *(_mean(spread([run.extra.get(key) for run in found])) for key in _OWN),
                    _mean(spread(waiting)),
                    _mean(spread([run.extra.get("pss_mib", 0) / 1024 for run in found])),
                    _mean(spread([cpu_s(run) for run in found])),
                    _late(found),
                ]
            )
    return _table(lines)


_PICTURE = """
![Requests/s and the text streams' p99 gap of every contender in every cell, with the range over the rounds](gpu.svg)
"""
# Of processes; with one rank its scheduler has no number.
_TITLES = (("tokenizer",), ("scheduler_TP0", "scheduler"), ("detokenizer",), ("other",))
_OWN = ("load_cpu_percent", "observer_cpu_percent")


def uncached(run: Run) -> float | None:
    """Prompt tokens computed for a request."""
    value = run.extra.get("uncached_tokens_per_request")
    return float(value) if value is not None else None


def cpu_s(run: Run) -> float | None:
    """CPU time of all of the server's processes for a picture, seconds, over what was counted around the window."""
    each, counted = uncached(run), run.extra["counters"]
    tokens = counted.get("sglang:uncached_prompt_tokens_histogram_sum")
    if not each or not tokens or "counted_s" not in run.extra:
        return None
    used: float = sum(run.extra["cpu_percent"].values()) / 100 * run.extra["counted_s"]
    return float(used / (tokens / each * run.images))


def _late(found: list[Run]) -> str:
    """Share of the looks at the event loop, over the rounds."""
    looks, late = 0.0, 0.0
    for run in found:
        counted = run.extra["counters"]
        every = counted.get(f'{LAG}{{le="+Inf"}}', 0.0)
        looks, late = looks + every, late + every - counted.get(f'{LAG}{{le="{LATE_S:g}"}}', 0.0)
    return f"{late / looks:.1%}" if looks else NONE


def _encoded(report: Report, cell: CellKey) -> bool:
    """Whether the oracle's vision tower was given as many patches as it computed pictures' tokens for.

    A request that was taken back may have been encoded and not be counted as ended, so more is no fault.
    """
    for run in runs(report, "resident", cell):
        counted = run.extra["counters"]
        tokens = counted.get("sglang:uncached_prompt_tokens_histogram_sum", 0)
        pictures = cell[1] * bound.patches(cell[2])
        requests = tokens / (uncached(run) or tokens)
        if counted.get("coatcheck_bench_resident_patches_total", 0) < 0.99 * requests * pictures:
            return False
    return True


def _gap_p50(run: Run) -> float | None:
    return run.text_gap_ms.p50 if run.text_gap_ms else None


def _cpu(found: list[Run], *titles: str) -> str:
    used = [run.extra.get("cpu_percent", {}) for run in found]
    return _mean(spread([sum(of.get(title, 0.0) for title in titles) for of in used]))


def _cell(cell: CellKey) -> str:
    clients, images, side = cell
    return f"{clients} x {images} of {side}"


def _mean(found: Spread | None, scale: float = 1.0) -> str:
    return number(found.mean * scale) if found else NONE


def _with_range(found: Spread | None) -> str:
    if found is None or found.least == found.most:
        return _mean(found)
    return f"{number(found.mean)} [{number(found.least)}–{number(found.most)}]"


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _table(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _sections(reports: dict[str, Report], made: Callable[[Report], str]) -> str:
    return "\n".join(f"`{name}` ({', '.join(contenders(one))}):\n\n{made(one)}" for name, one in reports.items())


def legend() -> str:
    """A line for each contender."""
    return "".join(f"- *{name}*: {one.what}.\n" for name, one in CONTENDERS.items())


def read(directory: Path) -> dict[str, Report]:
    """Reports by file, those with SGLang's own settings first."""
    found = {path.name.removesuffix(".json.gz"): read_json(path, Report) for path in directory.glob("*.json.gz")}
    return dict(sorted(found.items(), key=lambda item: (not set(INSTALLED) & set(contenders(item[1])), item[0])))


def with_tables(text: str, reports: dict[str, Report]) -> str:
    """The document with its tables made anew. Raises ValueError if it lacks a place for one."""
    for name, made in {"legend": legend(), **tables(reports)}.items():
        text = replaced(text, name, made, "gpu.report")
    return text


def main() -> int:
    """Command line."""
    from benchmarks.gpu.plot import overview
    from coatcheck.bench.support.plots import svg

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report", description=__doc__)
    parser.add_argument("action", choices=("write",))
    parser.parse_args()
    reports = read(DATA)
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), reports))
    if reports:
        PLOT.write_text(svg(overview(reports), "gpu") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
