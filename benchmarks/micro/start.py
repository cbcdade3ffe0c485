"""What a server's start costs, with the model and with the null runner: ``python -m benchmarks.micro.start``.

Seconds until ``coatcheck serve`` is ready, and CPU seconds of all its processes until then, in turns. To compare two
versions, run it in both, in turns too.
"""

from __future__ import annotations

import argparse
import os
import statistics

from coatcheck.bench.support.server import ServerProcess

RUNNERS = ("model", "null")


def start(tp: int, runner: str) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    with ServerProcess("--tp", str(tp), "--runner", runner) as server:
        return server.start_s, sum(sum(process.cpu_times()[:2]) for process in server.family())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    starts: dict[str, list[tuple[float, float]]] = {runner: [] for runner in RUNNERS}
    for _ in range(args.rounds):
        for runner in RUNNERS:
            starts[runner].append(start(args.tp, runner))
    print(f"{args.tp} ranks, {os.cpu_count()} cores, median of {args.rounds} (least to most)")
    for runner, made in starts.items():
        for name, values in zip(("s", "CPU s"), zip(*made, strict=True), strict=True):
            print(f"  {runner}: {statistics.median(values):.1f} {name} ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
