"""Rounds: the whole workload once, under one strategy, with so many requests under way at a time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from coatcheck.bench.engine.driver import Driver, Heard
from coatcheck.bench.support.cpu import CpuMeter


@dataclass(frozen=True)
class RawRound:
    """What the client's side saw of a round."""

    number: int
    strategy: str
    start: float  # monotonic
    seconds: float
    cpu_seconds: dict[str, float]  # by process of the engine
    load: float  # CPU time of all other processes, in percent of one core; the benchmark's own process left out
    heard: list[Heard]  # by index

    @property
    def said_sha256(self) -> str:
        """Over the tokens of all requests; empty if one failed."""
        if any(heard.error is not None for heard in self.heard):
            return ""
        return hashlib.sha256("\n".join(heard.said for heard in self.heard).encode()).hexdigest()


async def run_round(
    driver: Driver, strategy: str, number: int, requests: int, concurrency: int, done: Callable[[], None]
) -> RawRound:
    """Asks requests 0, 1, ..., in order, ``concurrency`` at a time; calls ``done`` after each."""
    indices = iter(range(requests))
    heard: list[Heard] = [Heard() for _ in range(requests)]

    async def client() -> None:
        for index in indices:
            heard[index] = await driver.ask(index, strategy)
            done()

    meter = CpuMeter(driver.pids())
    start = time.monotonic()
    await asyncio.gather(*[client() for _ in range(min(concurrency, requests))])
    seconds = time.monotonic() - start
    cpu, others = meter.stop()
    return RawRound(number, strategy, start, seconds, cpu, others / seconds * 100, heard)
