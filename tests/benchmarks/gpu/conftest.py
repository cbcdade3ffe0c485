"""Runs and reports of the GPU benchmark as its files have them, made of a few figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coatcheck.bench.serve.result import Peak, Report, Run, Tail

MakeRun = Callable[..., Run]


def make_run(
    contender: str,
    round_: int = 1,
    rate: float = 10.0,
    gap: float = 100.0,
    latency: float = 1000.0,
    cell: tuple[int, int, int] = (32, 1, 1024),
    **extra: Any,
) -> Run:
    """``gap`` and ``latency``: p99 and p50, ms."""
    clients, images, side = cell
    return Run(
        contender=contender,
        round=round_,
        tp=2,
        clients=clients,
        images=images,
        side=side,
        output_tokens=32,
        requests_per_s=rate,
        latency_ms=Tail(p50=latency, p99=2 * latency),
        ttft_ms=Tail(p50=latency / 2, p99=latency),
        text_gap_ms=Peak(p50=5.0, p99=gap, max=2 * gap),
        probe_ms=Peak(p50=50.0, p99=90.0, max=91.0),
        health_ms=None,
        errors={},
        tokens_expected=320,
        tokens_received=320,
        samples={},
        extra={"uncached_tokens_per_request": 1400.0, "counters": {}, "gpu": ["NVIDIA H100 80GB HBM3"] * 2, **extra},
    )


def make_report(*runs: Run) -> Report:
    """With the contenders in the order of their runs."""
    names = list(dict.fromkeys(run.contender for run in runs))
    options = {
        "group": {"name": "g", "contenders": names},
        "plan": {"output_tokens": 32, "text_streams": 4},
        "model": "{}",
    }
    return Report(schema=1, environment={}, options=options, runs=list(runs))


@pytest.fixture
def run() -> MakeRun:
    """Makes one."""
    return make_run


@pytest.fixture
def report() -> Callable[..., Report]:
    """Makes one of runs."""
    return make_report
