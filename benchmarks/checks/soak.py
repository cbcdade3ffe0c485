"""Does memory stay where it is? ``python -m benchmarks.checks.soak [--requests 10000] [--aborts 0.2]``.

Requests of mixed sizes under one strategy through bare ranks and a small arena, some of them left at a random moment.
Prints the resident memory of every process as it goes. Exit status 1 if one grew by 1 % or more over the second half,
a request failed otherwise than by being left, or the arena is not empty in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from coatcheck.bench.engine.config import BenchConfig
from coatcheck.bench.engine.tensors import TensorDriver
from coatcheck.bench.engine.workload import TensorWorkload
from coatcheck.engine.model.config import EngineConfig
from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.table import canonical
from coatcheck.process import quiet_libraries
from coatcheck.wire import Buffer

IMAGES = ((224, 1), (448, 1), (448, 3), (1024, 1), (1024, 2), (28, 1), (224, 0))  # pixels, images per request
LIMIT = 0.01
EMPTY_S = 10.0  # for the last blocks to come back


class MixedWorkload(TensorWorkload):
    """Requests of several shapes, in an order drawn from the seed."""

    def __init__(self, config: BenchConfig) -> None:
        super().__init__(config)
        kinds = [
            BenchConfig(config.strategies, image=f"{edge}x{edge}", images_per_request=images, requests=16, seed=at)
            for at, (edge, images) in enumerate(IMAGES)
        ]
        self._workloads = [TensorWorkload(kind) for kind in kinds]
        self._rng = random.Random(config.seed)

    def request(self, index: int, name: str, strategy: str, verify: bool) -> tuple[Arrived, list[Buffer]]:
        """See TensorWorkload."""
        return self._rng.choice(self._workloads).request(index % 16, name, strategy, verify)


async def soak(args: argparse.Namespace) -> list[str]:
    """What was wrong."""
    config = BenchConfig(
        (canonical(args.strategy),),
        tp=args.tp,
        concurrency=args.concurrency,
        requests=1,
        image="28x28",
        arena_mib=args.arena_mib,
        engine=EngineConfig(runner="null"),
    )
    rng = random.Random(1)
    outcomes: Counter[str] = Counter()
    sizes: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as directory:
        async with TensorDriver(config, MixedWorkload(config), Path(directory), False) as driver:
            processes = {name: psutil.Process(pid) for name, pid in driver.pids().items()}
            processes["owner"] = psutil.Process()
            indices = iter(range(args.requests))

            async def client() -> None:
                for index in indices:
                    if index % max(1, args.requests // 20) == 0:
                        sizes.append({name: process.memory_info().rss for name, process in processes.items()})
                        shown = ", ".join(f"{name} {rss / 1e6:.1f} MB" for name, rss in sizes[-1].items())
                        print(f"{index:6d}: {shown}", flush=True)
                    try:
                        async with asyncio.timeout(rng.expovariate(20) if rng.random() < args.aborts else None):
                            heard = await driver.ask(index, config.strategies[0])
                        outcomes[heard.error or "finished"] += 1
                    except TimeoutError:
                        outcomes["left"] += 1

            await asyncio.gather(*[client() for _ in range(config.concurrency)])
            deadline = time.monotonic() + EMPTY_S
            while (held := driver.arena.statistics()).in_use + held.quarantined + held.reserved:
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.05)
            sizes.append({name: process.memory_info().rss for name, process in processes.items()})
            statistics = driver.arena.statistics()
    print(dict(outcomes), statistics)
    middle = sizes[len(sizes) // 2]
    growth = {name: sizes[-1][name] / middle[name] - 1 for name in middle}
    print("growth over the second half:", {name: f"{share:+.2%}" for name, share in growth.items()})
    wrong = [f"{name} grew by {share:.2%}" for name, share in growth.items() if share >= LIMIT]
    wrong += [f"{count} x {outcome}" for outcome, count in outcomes.items() if outcome not in ("finished", "left")]
    if statistics.in_use + statistics.quarantined + statistics.reserved:
        wrong.append(f"the arena is not empty: {statistics}")
    return wrong


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", default="handle-background")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--aborts", type=float, default=0.0, help="share of requests that their client leaves")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--arena-mib", type=int, default=256)
    quiet_libraries()
    wrong = asyncio.run(soak(parser.parse_args()))
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
