"""Made-up reports: plausible figures from a seed, the summaries computed from the samples."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from coatcheck.bench.engine.result import (
    Quantiles,
    Report,
    RequestSample,
    Round,
    Run,
    Stall,
    StallByRole,
    StallQuantiles,
)
from coatcheck.bench.support.files import SCHEMA

HOSTILE = "rank 1: <script>alert('pixels')</script> | `rm` [red]\nand & more"
# Milliseconds of broadcast and of materialization on the scheduler's thread, of the entry rank.
COSTS = {
    "object-inline": (14.0, 30.0),
    "object-background": (0.3, 0.4),
    "dict-inline": (6.0, 21.0),
    "dict-background": (6.0, 0.4),
    "handle-inline": (0.2, 19.0),
    "handle-background": (0.2, 0.05),
    "handle-packed": (0.1, 0.05),
}


def make_run(strategy: str, *, tp: int = 2, rounds: int = 3, requests: int = 12, seed: int = 7) -> Run:
    """A run in which every request succeeded."""
    rng = random.Random(f"{seed} {strategy} {tp}")
    samples = [_round(rng, number, tp, requests, *COSTS[strategy]) for number in range(rounds)]

    def of(values: Callable[[RequestSample], Iterable[float]]) -> Quantiles:
        return _quantiles([[v for sample in r.requests for v in values(sample)] for r in samples])

    def stall(ranks: slice) -> StallQuantiles:
        wall, cpu = of(lambda sample: sample.stall_ms[ranks]), of(lambda sample: sample.stall_cpu_ms[ranks])
        return StallQuantiles(
            wall.p50, wall.p99, cpu.p50, cpu.p99, wall.p50_interval, wall.p99_interval, cpu.p50_interval
        )

    def by_rank(name: str, ranks: int) -> dict[str, Quantiles]:
        return {
            str(rank): _quantiles([[getattr(sample, name)[rank] for sample in r.requests] for r in samples])
            for rank in range(ranks)
        }

    qps = [requests / r.seconds for r in samples]
    cpu = [100 * sum(r.cpu_seconds.values()) / r.seconds for r in samples]
    return Run(
        strategy=strategy,
        tp=tp,
        concurrency=4,
        requests=requests,
        rounds=rounds,
        image="1024x768",
        images_per_request=2,
        payload_bytes=24_084_480,
        prompt_tokens=2070,
        output_tokens=16,
        input="tensors",
        runner="model",
        step_ms=0.0,
        qps=statistics.median(qps),
        qps_interval=(min(qps), max(qps)),
        latency_ms=of(lambda sample: [sample.latency_ms]),
        ttft_ms=of(lambda sample: [sample.ttft_ms or 0.0]),
        itl_ms=of(lambda sample: sample.itl_ms),
        stall_ms=StallByRole(stall(slice(0, 1)), stall(slice(1, None)) if tp > 1 else None),
        broadcast_ms=by_rank("broadcast_ms", tp) if tp > 1 else {},
        materialize_ms=by_rank("materialize_ms", 1 if strategy.startswith("object") else tp),
        cpu_percent=statistics.median(cpu),
        cpu_percent_interval=(min(cpu), max(cpu)),
        failed=0,
        failures={},
        inputs_sha256="1c0a57c43c" + "0" * 54,
        tokens_sha256="70ce25a1d0" + "0" * 54,
        samples=samples,
    )


def failed_run(strategy: str = "handle-inline", reason: str = HOSTILE, *, tp: int = 2) -> Run:
    """A run that ended before any round."""
    return Run(
        **{name: getattr(make_run(strategy, tp=tp), name) for name in SETTINGS},
        payload_bytes=0,
        prompt_tokens=0,
        qps=0.0,
        qps_interval=(0.0, 0.0),
        latency_ms=None,
        ttft_ms=None,
        itl_ms=None,
        stall_ms=StallByRole(None, None),
        broadcast_ms={},
        materialize_ms={},
        cpu_percent=0.0,
        cpu_percent_interval=(0.0, 0.0),
        failed=36,
        failures={reason: 36},
        inputs_sha256="",
        tokens_sha256="",
        samples=[],
    )


SETTINGS = (
    *("strategy", "tp", "concurrency", "requests", "rounds", "image", "images_per_request"),
    *("output_tokens", "input", "runner", "step_ms"),
)


def make_report(runs: list[Run]) -> Report:
    environment: dict[str, Any] = {
        "date": "2026-11-23T13:00:00+00:00",
        "commit": "461cdd3",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "cores": 2,
        "load": [0.5, 0.25, 0.125],
    }
    options = {"tp": 2, "concurrency": 4, "image": "1024x768", "verify": True, "json": None}
    return Report(SCHEMA, environment, options, runs)


def _round(rng: random.Random, number: int, tp: int, requests: int, broadcast: float, materialize: float) -> Round:
    samples, stalls, now = [], [], 0.0
    speed = rng.uniform(0.9, 1.1)
    for index in range(requests):
        sent = now
        for phase, cost in (("receive", 0.4), ("broadcast", broadcast), ("deliver", materialize), ("admit", 0.1)):
            took = [cost * rng.lognormvariate(0, 0.15) * (1 if rank == 0 else 0.9) for rank in range(tp)]
            stalls += [Stall(rank, index, phase, now, ms, ms * 0.9) for rank, ms in enumerate(took)]
            now += max(took) / 1000
        of_rank = [[s for s in stalls if s.index == index and s.rank == rank] for rank in range(tp)]
        wall = [sum(stall.wall_ms for stall in of) for of in of_rank]
        steps = [rng.lognormvariate(0, 0.2) * 4 / speed for _ in range(16)]
        now += sum(steps) / 1000
        samples.append(
            RequestSample(
                index=index,
                sent=sent,
                latency_ms=(now - sent) * 1000,
                ttft_ms=wall[0] + steps[0],
                itl_ms=steps[1:],
                stall_ms=wall,
                stall_cpu_ms=[sum(stall.cpu_ms for stall in of) for of in of_rank],
                broadcast_ms=[broadcast * rng.lognormvariate(0, 0.1) for _ in range(tp)],
                materialize_ms=[materialize * rng.lognormvariate(0, 0.1) for _ in range(tp)],
            )
        )
    cpu = {f"rank{rank}": now * rng.uniform(0.5, 0.7) for rank in range(tp)}
    return Round(number, number * 10.0, now, cpu, rng.uniform(1, 5), samples, stalls, "70ce25a1d0" + "0" * 54)


def _quantiles(rounds: list[list[float]]) -> Quantiles:
    p50s = [statistics.median(values) for values in rounds]
    p99s = [statistics.quantiles(values, n=100, method="inclusive")[98] for values in rounds]
    return Quantiles(statistics.median(p50s), statistics.median(p99s), (min(p50s), max(p50s)), (min(p99s), max(p99s)))


@pytest.fixture(scope="session")
def report() -> Report:
    """Two strategies, one of them also on four ranks, and one that failed wholly."""
    runs = [make_run("object-inline"), make_run("dict-inline"), make_run("dict-inline", tp=4), failed_run()]
    return make_report(runs)
