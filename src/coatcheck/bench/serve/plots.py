"""Four figures of a report: throughput by round, latency, what neighbours see, and latency over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from coatcheck.bench.serve.result import Run
from coatcheck.bench.serve.rows import Server
from coatcheck.bench.support.plots import (
    BLACK,
    BLUE,
    GREEN,
    LEAST_MS,
    ORANGE,
    SKY,
    VERMILLION,
    WIDTH_IN,
    box,
    legend,
    plain_log_ticks,
    rounds,
    rounds_legend,
    row_axes,
    styled,
)

ROUND_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, SKY, BLACK)


@styled
def throughput(servers: Sequence[Server]) -> Figure:
    """Image requests per second: each round, in its order, and the median."""
    figure, axes = _rows(servers, "Image requests answered per second", "requests/s")
    for at, server in enumerate(servers):
        values = [run.requests_per_s for run in server.runs]
        rounds(axes, at, values, statistics.median(values), (min(values), max(values)))
    rounds_legend(figure, axes)
    return figure


@styled
def latency(servers: Sequence[Server]) -> Figure:
    """Box plots of image requests: from sent to the first text, and to the end."""
    figure, axes = _rows(servers, "Image requests", "ms since it was sent", height=0.62)
    kinds = [("first text", ORANGE, "ttft_ms"), ("end of the answer", SKY, "latency_ms")]
    for at, server in enumerate(servers):
        for offset, (_, colour, name) in zip((-0.19, 0.19), kinds, strict=True):
            box(axes, at + offset, _values(server.runs, name), 0.3, colour)
    axes.set_xlim(left=0)
    legend(figure, [Patch(facecolor=colour, edgecolor=BLACK, label=name) for name, colour, _ in kinds])
    return figure


@styled
def neighbours(servers: Sequence[Server]) -> Figure:
    """Box plots of the text streams' gaps, of probes and of health checks; logarithmic."""
    figure, axes = _rows(servers, "What others see meanwhile", "ms, logarithmic", height=0.85)
    axes.set_xscale("log")
    kinds = [
        ("gap in a text stream", VERMILLION, "text_gap_ms"),
        ("text probe", SKY, "probe_ms"),
        ("GET /health", GREEN, "health_ms"),
    ]
    kinds = [kind for kind in kinds if any(_values(server.runs, kind[2]) for server in servers)]
    step = 0.8 / max(1, len(kinds))
    for at, server in enumerate(servers):
        for row, (_, colour, name) in enumerate(kinds):
            values = [max(value, LEAST_MS) for value in _values(server.runs, name)]
            box(axes, at + (row - (len(kinds) - 1) / 2) * step, values, step * 0.8, colour)
    plain_log_ticks(axes)
    legend(figure, [Patch(facecolor=colour, edgecolor=BLACK, label=name) for name, colour, _ in kinds])
    return figure


@styled
def over_time(servers: Sequence[Server]) -> Figure:
    """Each image request at its end, and above it the longest gaps; a panel for each server."""
    figure = Figure(figsize=(WIDTH_IN, 1.9 * len(servers) + 1.0))
    figure.suptitle("Over the window", x=0.01, ha="left", weight="bold")
    panels = figure.subplots(len(servers), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    numbers = list(dict.fromkeys(run.round for server in servers for run in server.runs))
    for axes, server in zip(panels, servers, strict=True):
        axes.set_title(server.name)
        axes.set_ylabel("latency, ms")
        axes.grid(axis="y")
        for run in server.runs:
            sent, took = run.samples["sent_ms"], run.samples["latency_ms"]
            ends = [(a + b) / 1e3 for a, b in zip(sent, took, strict=True) if a is not None and b is not None]
            axes.plot(ends, took, ".", color=_colour(numbers.index(run.round)), ms=5, alpha=0.7, mew=0)
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("seconds since the window's start, at the answer's end")
    shown = numbers[: len(ROUND_COLOURS)]
    marks = [
        Line2D([], [], marker=".", ms=8, lw=0, color=_colour(at), label=f"round {number}")
        for at, number in enumerate(shown)
    ]
    legend(figure, marks)
    return figure


def _colour(at: int) -> str:
    return ROUND_COLOURS[at % len(ROUND_COLOURS)]


def _values(runs: Sequence[Run], name: str) -> list[float]:
    return [value for run in runs for value in run.samples[name] if value is not None]


def _rows(servers: Sequence[Server], title: str, unit: str, height: float = 0.42) -> tuple[Figure, Axes]:
    """Axes with a row per server, first on top; one without an answer says so in its row."""
    remarks = ["" if _values(server.runs, "latency_ms") else "no answer" for server in servers]
    return row_axes([server.name for server in servers], remarks, title, unit, height)
