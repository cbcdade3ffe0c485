"""A report's figures as text: one list of rows for the terminal, Markdown and the page.

Ranks are named "0", "1", ... in ``Run.broadcast_ms`` and ``Run.materialize_ms``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from coatcheck.bench.engine.result import Quantiles, Report, Run, StallQuantiles
from coatcheck.bench.support.cells import NONE, number, spread

HASH_DIGITS = 8


def failed_wholly(run: Run) -> bool:
    """Not one request of it succeeded."""
    return run.latency_ms is None


def labels(report: Report) -> list[str]:
    """What tells the runs apart, in their order: the strategy, and the settings in which they differ."""
    differing = [of for of in _SETTINGS if len({of(run) for run in report.runs}) > 1]
    return [", ".join([run.strategy, *(of(run) for of in differing)]) for run in report.runs]


def workload(report: Report) -> str:
    """What all runs have in common, in one line."""
    runs = [run for run in report.runs if not failed_wholly(run)] or report.runs
    parts = [of(runs[0]) for of in (*_SETTINGS, *_COUNTS) if len({of(run) for run in runs}) == 1]
    return ", ".join(filter(None, parts))


def rows(report: Report) -> list[tuple[str, list[str]]]:
    """Label and cells, a cell for each run; without rows that apply to none of them."""
    every = [(name, [of(run) for run in report.runs]) for name, of in ROWS]
    return [(name, cells) for name, cells in every if set(cells) != {NONE}]


def failures(report: Report) -> list[str]:
    """A line for each reason for which requests failed, on one line each whatever the reason holds."""
    return [
        f"{label}: {_plural(count, 'request')} failed: {' '.join(reason.split())}"
        for label, run in zip(labels(report), report.runs, strict=True)
        for reason, count in run.failures.items()
    ]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


_SETTINGS: list[Callable[[Run], str]] = [
    lambda run: _plural(run.tp, "rank"),
    lambda run: f"{run.concurrency} at once",
    lambda run: f"a video ({run.video})" if run.video else f"{_plural(run.images_per_request, 'image')} of {run.image}",
    lambda run: f"input {run.input}",
    lambda run: f"runner {run.runner}",
]
_COUNTS: list[Callable[[Run], str]] = [
    lambda run: f"prompts of {run.prompt_tokens} tokens" if run.prompt_tokens else "",
    lambda run: f"answers of {run.output_tokens}",
    lambda run: f"{_plural(run.rounds, 'round')} of {_plural(run.requests, 'request')}",
]


def _p50(of: Quantiles | StallQuantiles | None) -> str:
    return NONE if of is None else spread(of.p50, of.p50_interval)


def _p99(of: Quantiles | StallQuantiles | None) -> str:
    return NONE if of is None else number(of.p99)


def _cpu_p50(of: StallQuantiles | None) -> str:
    return NONE if of is None else number(of.cpu_p50)


def _by_rank(run: Run) -> str:
    medians = [run.materialize_ms.get(str(rank)) for rank in range(run.tp)]
    return " / ".join(NONE if of is None else f"{of.p50:.2g}" for of in medians) if any(medians) else NONE


def _load(run: Run) -> str:
    return number(statistics.median(r.load for r in run.samples)) if run.samples else NONE


def _sha256(digest: str) -> str:
    return digest[:HASH_DIGITS] or "none"


ROWS: list[tuple[str, Callable[[Run], str]]] = [
    ("requests/s", lambda run: "failed" if failed_wholly(run) else spread(run.qps, run.qps_interval)),
    ("latency p50, ms", lambda run: _p50(run.latency_ms)),
    ("latency p99, ms", lambda run: _p99(run.latency_ms)),
    ("first token p50, ms", lambda run: _p50(run.ttft_ms)),
    ("between tokens p99, ms", lambda run: _p99(run.itl_ms)),
    ("stall, entry p50, ms", lambda run: _p50(run.stall_ms.entry)),
    ("stall, entry p99, ms", lambda run: _p99(run.stall_ms.entry)),
    ("stall, entry CPU p50, ms", lambda run: _cpu_p50(run.stall_ms.entry)),
    ("stall, follower p50, ms", lambda run: _p50(run.stall_ms.follower)),
    ("stall, follower p99, ms", lambda run: _p99(run.stall_ms.follower)),
    ("stall, follower CPU p50, ms", lambda run: _cpu_p50(run.stall_ms.follower)),
    ("broadcast, entry p50, ms", lambda run: _p50(run.broadcast_ms.get("0"))),
    ("materialize by rank p50, ms", _by_rank),
    ("payload of a request, MB", lambda run: number(run.payload_bytes / 1e6) if run.payload_bytes else NONE),
    ("CPU, % of a core", lambda run: spread(run.cpu_percent, run.cpu_percent_interval)),
    ("CPU of others, % of a core", _load),
    ("failed requests", lambda run: str(run.failed)),
    ("inputs, SHA-256", lambda run: _sha256(run.inputs_sha256)),
    ("tokens, SHA-256", lambda run: _sha256(run.tokens_sha256)),
]
