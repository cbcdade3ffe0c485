"""What a server without requests costs, and if it answers afterwards.

``python -m benchmarks.checks.idle [--minutes 60]``

Prints the share of one core that each process used. Exit status 1 if a rank used 2 % or more, or the answer is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from benchmarks.support.questions import ask_all
from coatcheck.bench.support.server import ServerProcess
from training.evaluate import held_out

LIMIT = 0.02  # of a core, each rank
SETTLE_S = 10.0  # after start


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--tp", type=int, default=2)
    args = parser.parse_args()
    (sample,) = held_out(1, seed=3)
    with ServerProcess("--tp", str(args.tp)) as server:
        processes = server.family()
        time.sleep(SETTLE_S)
        before = [sum(process.cpu_times()[:2]) for process in processes]
        start = time.monotonic()
        time.sleep(args.minutes * 60)
        elapsed = time.monotonic() - start
        shares = [(sum(p.cpu_times()[:2]) - spent) / elapsed for p, spent in zip(processes, before, strict=True)]
        (answer,) = asyncio.run(ask_all(server.url, [sample], 1))
        names = [process.name() for process in processes]
    for name, share in zip(names, shares, strict=True):
        print(f"{name}: {share:.2%} of a core over {elapsed / 60:.0f} minutes")
    print(f"then {sample.question!r} was answered {answer!r}, right is {sample.answer!r}")
    busy = any(share >= LIMIT for name, share in zip(names, shares, strict=True) if "rank" in name)
    return 1 if busy or answer != sample.answer else 0


if __name__ == "__main__":
    sys.exit(main())
