"""Rounds: the whole workload once, under one strategy, with so many requests under way at a time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from coatcheck.bench.driver import Driver, Heard


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


def rotated(strategies: Sequence[str], number: int) -> list[str]:
    """The order of a round: each strategy comes first, second, ... equally often."""
    at = number % len(strategies)
    return [*strategies[at:], *strategies[:at]]


class CpuMeter:
    """CPU seconds of the engine's processes, and of all that is neither theirs nor ours."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {"": psutil.Process()}
        for name, pid in pids.items():
            try:
                self._processes[name] = psutil.Process(pid)
            except psutil.NoSuchProcess:  # it died: the round will tell
                continue
        self._before = self._read()
        self._whole = _busy()

    def _read(self) -> dict[str, float]:
        times = {}
        for name, process in self._processes.items():
            try:
                times[name] = sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                times[name] = 0.0
        return times

    def stop(self) -> tuple[dict[str, float], float]:
        """By process of the engine, and of all others together."""
        after = self._read()
        spent = {name: max(0.0, after[name] - self._before[name]) for name in after}
        others = max(0.0, _busy() - self._whole - sum(spent.values()))
        del spent[""]
        return spent, others


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
