"""``coatcheck bench engine``: the strategies in one engine, interleaved in rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from coatcheck.bench.engine.config import BenchConfig
from coatcheck.bench.engine.driver import Driver
from coatcheck.bench.engine.result import Report, Round, Run
from coatcheck.bench.engine.rounds import RawRound, run_round
from coatcheck.bench.engine.summary import (
    Traces,
    by_rank,
    by_request,
    digest,
    failures,
    over_rounds,
    quantiles,
    sampled,
    stall_by_role,
)
from coatcheck.bench.support.environment import environment, load_average
from coatcheck.bench.support.files import SCHEMA
from coatcheck.bench.support.turns import rotated
from coatcheck.engine.ranks import trace

WARM = 16  # requests at most, of each strategy before the first round

Open = Callable[[Path, bool], AbstractAsyncContextManager[Driver]]
"""Starts an engine that writes traces to a directory, and verifies inputs or not."""


class Progress(Protocol):
    """Hears what is going on."""

    def phase(self, text: str, requests: int) -> None:
        """So many requests follow, of this kind."""
        ...

    def done(self) -> None:
        """One request less."""
        ...


async def measure(config: BenchConfig, start: Open, progress: Progress) -> Report:
    """Verifies each strategy's inputs in one engine, then measures all strategies in another, round by round.

    Verifying reads every byte on the scheduler's thread, so nothing is measured meanwhile.
    """
    before = environment()
    with _directory() as directory:
        inputs = await _verify(config, start, directory, progress)
    with _directory() as directory:
        async with start(directory, False) as driver:
            for strategy in config.strategies:
                warm = min(config.concurrency, WARM)
                progress.phase(f"warming up: {strategy}", warm)
                await run_round(driver, strategy, -1, warm, warm, progress.done)
            raw: dict[str, list[RawRound]] = {strategy: [] for strategy in config.strategies}
            for number in range(1, config.rounds + 1):
                for strategy in rotated(config.strategies, number):
                    progress.phase(f"round {number} of {config.rounds}: {strategy}", config.requests)
                    raw[strategy].append(
                        await run_round(driver, strategy, number, config.requests, config.concurrency, progress.done)
                    )
        traces = _traces(directory, config.tp)
        tokens = driver.prompt_tokens
    runs = [
        _run(
            config,
            strategy,
            [sampled(one, traces) for one in rounds],
            inputs[strategy],
            (driver.payload_bytes(strategy), tokens),
        )
        for strategy, rounds in raw.items()
    ]
    options = {
        **asdict(config),
        "model": config.model.name,
        "video": Path(config.video).name,
        "engine": _engine_options(config),
    }
    return Report(SCHEMA, {**before, "load_average_after": load_average()}, options, runs)


def _engine_options(config: BenchConfig) -> dict[str, object]:
    return {**asdict(config.engine), "model": config.engine.model.name}


async def _verify(config: BenchConfig, start: Open, directory: Path, progress: Progress) -> dict[str, str]:
    """inputs_sha256 by strategy."""
    raw = {}
    async with start(directory, True) as driver:
        for strategy in config.strategies:
            progress.phase(f"verifying inputs: {strategy}", config.requests)
            raw[strategy] = await run_round(driver, strategy, -1, config.requests, config.concurrency, progress.done)
    traces = _traces(directory, 1)
    return {strategy: digest(traces, round_) for strategy, round_ in raw.items()}


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="coatcheck-bench-") as name:
        yield Path(name)


def _traces(directory: Path, tp: int) -> Traces:
    return [by_request(trace.read(directory, rank)) for rank in range(tp)]


def _run(config: BenchConfig, strategy: str, rounds: list[Round], inputs: str, sizes: tuple[int, int]) -> Run:
    qps, qps_interval = over_rounds(rounds, lambda r: sum(request.error is None for request in r.requests) / r.seconds)
    cpu, cpu_interval = over_rounds(rounds, lambda r: sum(r.cpu_seconds.values()) / r.seconds * 100)
    failed = failures(rounds)
    tokens = {r.tokens_sha256 for r in rounds}
    return Run(
        strategy=strategy,
        tp=config.tp,
        concurrency=config.concurrency,
        requests=config.requests,
        rounds=config.rounds,
        image=config.image,
        images_per_request=config.images_per_request,
        video=Path(config.video).name,
        payload_bytes=sizes[0],
        prompt_tokens=sizes[1],
        output_tokens=config.output_tokens,
        input=config.input,
        runner=config.engine.runner,
        step_ms=config.engine.step_ms,
        qps=qps,
        qps_interval=qps_interval,
        latency_ms=quantiles(rounds, lambda request: [request.latency_ms]),
        ttft_ms=quantiles(rounds, lambda request: [request.ttft_ms]),
        itl_ms=quantiles(rounds, lambda request: request.itl_ms),
        stall_ms=stall_by_role(rounds, config.tp),
        broadcast_ms=by_rank(rounds, config.tp, lambda request: request.broadcast_ms),
        materialize_ms=by_rank(rounds, config.tp, lambda request: request.materialize_ms),
        cpu_percent=cpu,
        cpu_percent_interval=cpu_interval,
        failed=sum(failed.values()),
        failures=failed,
        inputs_sha256=inputs,
        tokens_sha256=tokens.pop() if len(tokens) == 1 else "",
        samples=rounds,
    )
